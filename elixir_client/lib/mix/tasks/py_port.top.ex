defmodule Mix.Tasks.PyPort.Top do
  @shortdoc "Shows what the Pythons of a running node are doing, like top"

  @moduledoc """
  Shows the servers and pools of a running node, and what each Python is doing, until Ctrl-C.

      mix py_port.top --node my_app@localhost --cookie secret
      mix py_port.top --node my_app@10.0.0.7 --cookie secret --interval 5
      mix py_port.top --once

  A task is a VM of its own, so the node to look at has to be named: it must have been started with a name (`iex --sname
  my_app -S mix`, or a release) and this machine must be able to reach it. This VM joins it hidden, so that no other node of its
  cluster is told. Without `--node` the task starts the project's own application, and shows the servers in it.

  The table is that of `PyPort.Status.table/1`. Numbers are Python's own, from its last heartbeat, and asking for them
  disturbs no request.

  ## Options

    * `--node`, `-n` - the node, `name@host`. The part after the @ is written as the node itself has it.
    * `--cookie`, `-c` - its cookie. Default: that of this user, `~/.erlang.cookie`.
    * `--interval`, `-i` - seconds between two looks, 1 or more. Default: 1.
    * `--once` - prints the table once and ends, for scripts.
  """
  use Mix.Task

  alias PyPort.Status

  @switches [node: :string, cookie: :string, interval: :integer, once: :boolean]
  @aliases [n: :node, c: :cookie, i: :interval]

  # How long a node may take to answer before that is said.
  @answer_ms 5_000

  @impl true
  def run(args) do
    options = options!(args)
    node = reach!(options)
    if options[:once], do: Mix.shell().info(look!(node)), else: refresh(node, options[:interval] || 1)
  end

  defp options!(args) do
    case OptionParser.parse(args, strict: @switches, aliases: @aliases) do
      {options, [], []} ->
        interval = Keyword.get(options, :interval, 1)
        if interval < 1, do: Mix.raise("--interval is a number of seconds, 1 or more, got: #{interval}")
        options

      {_options, words, invalid} ->
        wrong = Enum.map(invalid, &elem(&1, 0)) ++ words

        Mix.raise(
          "mix py_port.top does not know #{Enum.join(wrong, ", ")}. It takes --node NAME@HOST, --cookie COOKIE, " <>
            "--interval SECONDS and --once"
        )
    end
  end

  @doc false
  # The node that the options name, reached; or this one, with the application started.
  @spec reach!(keyword()) :: node()
  def reach!(options) do
    case options[:node] do
      nil ->
        Mix.Task.run("app.start")
        node()

      name ->
        Mix.Task.run("loadpaths")
        join!(name)
        if options[:cookie], do: Node.set_cookie(String.to_atom(options[:cookie]))
        String.to_atom(name)
    end
  end

  # Names are long where the other's are: those with a dot in the host.
  defp join!(name) do
    host = with [_name, host] <- String.split(name, "@"), do: host
    unless is_binary(host), do: Mix.raise("--node is written name@host, got: #{name}")
    domain = if String.contains?(host, "."), do: :longnames, else: :shortnames
    mine = :"py_port_top_#{System.pid()}#{if domain == :longnames, do: "@127.0.0.1"}"

    unless Node.alive?() do
      case :net_kernel.start(mine, %{name_domain: domain, hidden: true}) do
        {:ok, _pid} ->
          :ok

        {:error, reason} ->
          Mix.raise("this VM cannot join a cluster: #{inspect(reason)}. Is epmd running (epmd -daemon)?")
      end
    end
  end

  defp refresh(node, interval) do
    table = look!(node)
    # A terminal shows one table; a file, or a pipe, gets one after the other.
    if IO.ANSI.enabled?(), do: IO.write([IO.ANSI.home(), IO.ANSI.clear()])
    Mix.shell().info("#{node}, every #{interval} s, Ctrl-C to end\n\n#{table}\n")
    Process.sleep(interval * 1_000)
    refresh(node, interval)
  end

  defp look!(node) do
    case :erpc.call(node, Status, :all, [], @answer_ms) do
      [] -> "no PyPort.Server and no PyPort.Pool is running"
      statuses -> Status.table(statuses)
    end
  rescue
    error in [ErlangError, UndefinedFunctionError] ->
      Mix.raise("the node #{node} #{why(error)}")
  end

  defp why(%ErlangError{original: {:erpc, :noconnection}}) do
    "cannot be reached: is it running under that name, is its cookie the same (--cookie), and does it run on the host " <>
      "that its name says?"
  end

  defp why(%ErlangError{original: {:erpc, :timeout}}), do: "did not answer within #{@answer_ms} ms"
  defp why(_undefined), do: "has no PyPort, or not the same version as here"
end
