defmodule PyPort.Test.Nodes do
  # Other BEAMs of a test's own, which know each other by Erlang's distribution over loopback. The test's own VM stays
  # out of it: it speaks to them over their standard input and output, since a node that gets its name while the suite
  # runs would change what pids mean under all other tests.

  @cookie :py_port_tests

  @doc "Whether nodes can be started here, or why not."
  def available do
    case start_epmd() do
      :ok -> :ok
      {:error, why} -> {:error, "no nodes: #{why}"}
    end
  end

  # What `erl -name` does by itself, done here to see whether it works.
  defp start_epmd do
    case System.find_executable("epmd") || bundled_epmd() do
      nil ->
        {:error, "there is no epmd"}

      epmd ->
        System.cmd(epmd, ["-daemon"])
        if eventually_listening(50), do: :ok, else: {:error, "epmd does not listen on port 4369"}
    end
  end

  defp bundled_epmd do
    path = Path.join([:code.root_dir(), "erts-#{:erlang.system_info(:version)}", "bin", "epmd"])
    if File.exists?(path), do: path
  end

  defp eventually_listening(0), do: false

  defp eventually_listening(tries) do
    case :gen_tcp.connect({127, 0, 0, 1}, 4369, [], 500) do
      {:ok, socket} -> :gen_tcp.close(socket) == :ok
      {:error, _reason} -> Process.sleep(20) && eventually_listening(tries - 1)
    end
  end

  @doc "A name that nobody has."
  def new_name, do: "py_port_#{System.pid()}_#{System.unique_integer([:positive])}"

  @doc "A node with Elixir on it, and with PyPort as `options` say, which ends with the test."
  def start_node(options \\ []) do
    named =
      if options[:name] == :none,
        do: %{},
        else: %{name: String.to_charlist(new_name()), host: ~c"127.0.0.1", longnames: true}

    # Otherwise those that still see a node that has gone down are cut off, too.
    arguments = [
      ~c"-setcookie",
      Atom.to_charlist(@cookie),
      ~c"-kernel",
      ~c"prevent_overlapping_partitions",
      ~c"false"
    ]

    start = Map.merge(named, %{connection: :standard_io, args: arguments ++ code_paths(options)})

    {peer, node} =
      with {:ok, peer, node} <- :peer.start(start), do: {peer, node}, else: ({:ok, peer} -> {peer, nil})

    ExUnit.Callbacks.on_exit(fn -> stop_node(%{peer: peer}) end)
    {:ok, _apps} = :peer.call(peer, :application, :ensure_all_started, [:elixir])
    {:ok, _apps} = :peer.call(peer, :application, :ensure_all_started, [:logger])
    :peer.call(peer, Logger, :configure, [[level: :none]])

    if Keyword.get(options, :py_port, true) do
      :ok = :peer.call(peer, :application, :load, [:py_port])

      for {key, value} <- Keyword.get(options, :config, []),
          do: :peer.call(peer, :application, :set_env, [:py_port, key, value])

      {:ok, _apps} = :peer.call(peer, :application, :ensure_all_started, [:py_port])
    end

    %{peer: peer, node: node}
  end

  defp code_paths(options) do
    paths = for path <- :code.get_path(), path != ~c".", do: path

    paths =
      if Keyword.get(options, :py_port, true),
        do: paths,
        else: Enum.reject(paths, &(to_string(&1) =~ "/py_port/ebin"))

    Enum.flat_map(paths, &[~c"-pa", &1])
  end

  def stop_node(%{peer: peer}) do
    :peer.stop(peer)
  catch
    :exit, _ended -> :ok
  end

  def connect(%{peer: peer}, %{node: other}), do: true = :peer.call(peer, :net_kernel, :connect_node, [other])

  @doc "Evaluates Elixir on a node and gives its value; `bindings` are variables there."
  defmacro on(node, bindings \\ [], do: block) do
    quoted = Macro.escape(block)
    quote do: PyPort.Test.Nodes.evaluate(unquote(node), unquote(quoted), unquote(bindings))
  end

  def evaluate(%{peer: peer}, quoted, bindings) do
    {value, _bindings} = :peer.call(peer, Code, :eval_quoted, [quoted, bindings], 60_000)
    value
  end
end
