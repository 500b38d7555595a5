defmodule PyPort.Server.Launch do
  # How a Python server is started: which interpreter, with which words, in which surroundings. Pure but
  # for looking up what stands on the disk; the port itself is opened by PyPort.Server.
  @moduledoc false

  alias PyPort.Error

  # The shell opens the stderr file before Python starts, so that even a failing import leaves its words
  # there; `exec` keeps the pid, and with it the process group that the port's child leads.
  @shell ~S(exec 2>>"$1"; shift; exec "$@")

  # -P keeps the working directory out of the way while the server imports its own modules, so a file
  # that happens to be called select.py cannot stop it; the directory joins the path right after, as with
  # `python -c`, because people keep their own modules there. The package that ships with this library stands last:
  # one that is installed in the environment, built for that Python, is the better one.
  @boot "import sys; sys.path.append(sys.argv[1]); from port_server.server import lifecycle; " <>
          "sys.path.insert(0, ''); sys.argv[:] = ['']; sys.exit(lifecycle.serve())"

  @type t :: %{executable: Path.t(), port_options: list()}

  @spec prepare(map(), stderr_path :: Path.t()) :: {:ok, t()} | {:error, Error.t()}
  def prepare(options, stderr_path) do
    with {:ok, python} <- find_python(options.python),
         {:ok, directory} <- find_directory(options.cd) do
      arguments = ["-c", @shell, "sh", stderr_path, python, "-P", "-c", @boot, package_path()]

      {:ok,
       %{
         executable: python,
         port_options:
           [
             {:packet, 4},
             :binary,
             :exit_status,
             :use_stdio,
             :hide,
             # Never suspend a caller inside Port.command/2; the port's queue is watched instead.
             {:busy_limits_port, :disabled},
             {:busy_limits_msgq, :disabled},
             {:args, arguments},
             {:env, Enum.map(options.env, &variable/1)}
           ] ++ directory
       }}
    end
  end

  defp variable({name, value}) when value in [nil, false], do: {String.to_charlist(name), false}
  defp variable({name, value}), do: {String.to_charlist(name), String.to_charlist(value)}

  defp find_python(nil) do
    case System.get_env("PYPORT_PYTHON") || System.find_executable("python3") do
      nil ->
        {:error,
         unavailable(
           "no Python was found: there is no python3 on the PATH. Install Python 3.11 or newer, or name one with " <>
             "the option :python (for the default server: config :py_port, server: [python: \"/path/to/python3\"])"
         )}

      python ->
        find_python(python)
    end
  end

  defp find_python(python) do
    case System.find_executable(python) do
      nil ->
        {:error,
         unavailable(
           "the Python interpreter #{inspect(python)} does not exist, or may not be executed; see the option :python"
         )}

      path ->
        {:ok, path}
    end
  end

  defp find_directory(nil), do: {:ok, []}

  defp find_directory(directory) do
    if File.dir?(directory) do
      {:ok, [{:cd, String.to_charlist(directory)}]}
    else
      {:error, unavailable("the directory #{inspect(directory)} of the option :cd does not exist")}
    end
  end

  defp package_path, do: Path.join(to_string(:code.priv_dir(:py_port)), "python")

  defp unavailable(message), do: %Error{kind: :unavailable, message: message, begun: false}
end
