defmodule Mix.Tasks.PyPort.Debug do
  @shortdoc "Lets a debugger attach to a running Python"

  @moduledoc """
  Has debugpy listen in a Python, for an editor to attach (in VS Code: "Python Debugger: Remote Attach").

      mix py_port.debug --node my_app@localhost --cookie secret --server MyApp.Python
      mix py_port.debug --port 5679

  The environment has to have debugpy among its packages (`mix py_port.add debugpy`). Code stops at the breakpoints that the
  editor sets, and at `breakpoint()`; give such requests a long `timeout:`. Of a pool one of its Pythons listens: a pool of `size: 1` is
  easier to debug. Without `--node` the task starts the project's own application, and goes on until Ctrl-C.

  ## Options

    * `--node`, `-n`, `--cookie`, `-c` - the node, as in `mix py_port.top`.
    * `--server`, `-s` - the name of the server or pool. Default: `PyPort.Default`.
    * `--port`, `-p` - the port on which debugpy listens, at 127.0.0.1. Default: 5678.
  """
  use Mix.Task

  alias Mix.Tasks.PyPort.Top

  @switches [node: :string, cookie: :string, server: :string, port: :integer]
  @aliases [n: :node, c: :cookie, s: :server, p: :port]
  # debugpy starts a process of its own.
  @timeout_ms 60_000

  @code """
  import importlib.util
  if importlib.util.find_spec("debugpy") is None:
      raise RuntimeError("debugpy is not in this environment: add it with mix py_port.add debugpy")
  import debugpy, os
  debugpy.listen(("127.0.0.1", port))
  os.getpid()
  """

  @impl true
  def run(args) do
    {options, []} = OptionParser.parse!(args, strict: @switches, aliases: @aliases)
    node = Top.reach!(options)
    name = Module.concat([options[:server] || "PyPort.Default"])
    port = options[:port] || 5678

    case PyPort.eval(@code, %{port: port}, server: {name, node}, timeout: @timeout_ms) do
      {:ok, os_pid} ->
        Mix.shell().info(
          "debugpy listens on 127.0.0.1:#{port} in the Python process #{os_pid} of #{inspect(name)}"
        )

      {:error, error} ->
        Mix.raise(Exception.message(error))
    end

    unless options[:node], do: Process.sleep(:infinity)
  end
end
