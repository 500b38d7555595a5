defmodule PyPort.Test.Features do
  # What the Python server at hand can do, as its hello says it: tests tagged `:needs_stream` and the like are left out
  # where it cannot, so that client and server may grow each at its own pace.

  @all ~w(heartbeat objects sessions logging async invoke send stream api opaque_fun)a

  @serve """
  import sys
  sys.path.insert(0, sys.argv[1])
  from port_server.server import lifecycle
  sys.exit(lifecycle.serve())
  """

  # What code may import is in no hello.
  @names """
  import sys
  sys.path.insert(0, sys.argv[1])
  import port_server
  print("api" if hasattr(port_server, "call") else "")
  print("opaque_fun" if "__call__" in vars(port_server.Fun) else "")
  """

  @doc "Those that are missing."
  def missing do
    {text, 0} = System.cmd(python(), ["-P", "-c", @names, package()])
    @all -- (hello() ++ (text |> String.split() |> Enum.map(&String.to_atom/1)))
  end

  @doc "What ExUnit is to leave out."
  def exclude, do: for(feature <- missing(), do: :"needs_#{feature}")

  defp hello do
    executable = System.find_executable(python())
    options = [{:packet, 4}, :binary, args: ["-P", "-c", @serve, package()]]
    port = Port.open({:spawn_executable, executable}, options)
    Port.command(port, PyPort.Wire.init(%{}))

    receive do
      {^port, {:data, frame}} ->
        Port.close(port)
        {:ok, _version, %{features: features}} = PyPort.Wire.decode_hello(frame)
        features
    after
      30_000 -> raise "the Python server did not say hello"
    end
  end

  defp python, do: System.get_env("PYPORT_PYTHON") || "python3"
  defp package, do: Path.join(to_string(:code.priv_dir(:py_port)), "python")
end
