defmodule PyPort.Test.Requests do
  # Requests of a test's own: timed, beside the test, and under way for as long as the test wants.
  import ExUnit.Assertions
  import ExUnit.Callbacks, only: [on_exit: 1]
  import PyPort.Test.Processes, only: [eventually: 1]

  @doc "The outcome of an eval, and how long it took, in ms. Options are those of the request, and `:globals`."
  def timed_eval(server, code, options \\ []) do
    {globals, options} = Keyword.pop(options, :globals, %{})
    started = System.monotonic_time(:millisecond)
    outcome = PyPort.eval(code, globals, [server: server] ++ options)
    {outcome, System.monotonic_time(:millisecond) - started}
  end

  @doc "The same in a task."
  def spawn_eval(server, code, options \\ []), do: Task.async(fn -> timed_eval(server, code, options) end)

  @doc "The same, and its code has begun when this returns."
  def begin_eval(server, code, options \\ []) do
    mark = new_path()
    task = spawn_eval(server, "open(#{inspect(mark)}, 'w').close()\n" <> code, options)
    assert eventually(fn -> File.exists?(mark) end), "it has not begun"
    task
  end

  @doc "Whether, within a moment, so many requests are open."
  def open?(server, count), do: eventually(fn -> match?([%{pending: ^count}], PyPort.status(server)) end)

  @doc "What code can wait for, see `wait_for/1`: a request that does is under way until the gate is opened."
  def new_gate, do: new_path()

  @doc "Python that goes on when the gate is open."
  def wait_for(gate), do: "import os, time\nwhile not os.path.exists(#{inspect(gate)}): time.sleep(0.002)\n"

  def open_gate(gate), do: File.touch!(gate)

  defp new_path do
    path = Path.join(System.tmp_dir!(), "py_port_test_#{System.pid()}_#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm(path) end)
    path
  end
end
