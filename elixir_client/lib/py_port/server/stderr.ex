defmodule PyPort.Server.Stderr do
  # The stderr file of the Python that runs: its lines go to Logger, its last lines and stacks into reports, and its size
  # stays limited. Runs in the server.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, StderrFile}
  alias PyPort.Server.State

  defstruct [:file]

  @type t :: %__MODULE__{file: StderrFile.t() | nil}

  # How many lines of it a report has.
  @report_lines 20

  # Reads of 64 KiB: the most that one look may bring to Logger.
  @reads 16

  # How soon its size is looked at again. On a disk it can grow by 800 MB a second, in memory by more.
  @look_ms 100
  @growing_ms 10

  @spec new() :: t()
  def new, do: %__MODULE__{}

  @spec open(State.t(), StderrFile.t()) :: State.t()
  def open(state, file), do: limit(put(state, file))

  @spec close(State.t()) :: State.t()
  def close(state) do
    if file = state.stderr.file, do: StderrFile.close(file)
    put(state, nil)
  end

  # Keeps the file small, from the launch of a Python to its end: each look schedules the next.
  @spec limit(State.t()) :: State.t()
  def limit(%{stderr: %{file: nil}} = state), do: state

  def limit(%{stderr: %{file: file}, options: options} = state) do
    {grown?, file} = StderrFile.limit(file, options.max_stderr_bytes)
    Process.send_after(self(), :stderr, if(grown?, do: @growing_ms, else: @look_ms))
    put(state, file)
  end

  # Notes how much stands in the file now: it is older than the requests to come.
  @spec note(State.t()) :: State.t()
  def note(%{phase: :ready, connection: connection, stderr: %{file: file}} = state),
    do: put(state, StderrFile.note(file, Connection.requests(connection), Connection.oldest(connection)))

  def note(state), do: state

  # Brings new lines to Logger.
  @spec log(State.t()) :: State.t()
  def log(%{stderr: %{file: nil}} = state), do: state

  def log(%{stderr: %{file: file}, options: %{logger: log?} = options, who: who} = state) do
    {lines, dropped, file} = StderrFile.read_lines(file, @reads)

    if dropped > 0 do
      Logger.warning(
        "PyPort #{who}: #{dropped} bytes of stderr were dropped unread, since more was written than " <>
          "#{options.max_stderr_bytes} bytes (max_stderr_bytes)"
      )
    end

    if log? and lines != [], do: Logger.info("PyPort #{who} stderr: #{Enum.join(lines, "\n")}")
    put(state, file)
  end

  # The last lines from the time of the requests that are open, for a report.
  @spec last_lines(State.t()) :: [String.t()]
  def last_lines(%{stderr: %{file: nil}}), do: []

  def last_lines(%{stderr: %{file: file}, connection: connection}),
    do: StderrFile.last_lines(file, @report_lines, Connection.oldest(connection))

  # The stack that faulthandler wrote when Python crashed, if it did.
  @spec fatal_stack(State.t()) :: String.t() | nil
  def fatal_stack(%{stderr: %{file: file}, connection: connection}),
    do: file && StderrFile.fatal_stack(file, Connection.oldest(connection))

  defp put(state, file), do: %{state | stderr: %__MODULE__{file: file}}
end
