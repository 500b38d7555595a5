defmodule PyPort.Server.Stderr do
  # The stderr file of the Python that runs: what is written goes on to a device or to Logger, its last lines and stacks into reports, and its size
  # stays limited. Runs in the server.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, StderrFile, Wire}
  alias PyPort.Server.State

  defstruct [:file]

  @type t :: %__MODULE__{file: StderrFile.t() | nil}

  # How many lines of it a report has.
  @report_lines 20

  # Reads of 64 KiB: the most that one look may bring to Logger.
  @reads 16

  # The most requests that a line of Logger names.
  @named_requests 10

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

  # The text that was written since the last look. Without `all?` a last line without an end is left for the next one.
  @spec read(State.t(), all? :: boolean()) :: {binary(), State.t()}
  def read(%{stderr: %{file: nil}} = state, _all?), do: {"", state}

  def read(%{stderr: %{file: file}, options: options, who: who} = state, all?) do
    {text, dropped, file} = StderrFile.read(file, @reads, all?)

    if dropped > 0 do
      Logger.warning(
        "PyPort #{who}: #{dropped} bytes of stderr were dropped unread, since more was written than " <>
          "#{options.max_stderr_bytes} bytes (max_stderr_bytes)"
      )
    end

    {text, put(state, file)}
  end

  # Brings all that is there to Logger: Python has ended.
  @spec log(State.t()) :: State.t()
  def log(state) do
    {text, state} = read(state, true)
    log(state, [], text)
    state
  end

  # Brings text to Logger, with the requests one of which may have written it.
  @spec log(State.t(), [Wire.id()], binary()) :: :ok
  def log(%{options: %{logger: false}}, _ids, _text), do: :ok

  def log(state, ids, text) do
    lines = StderrFile.lines(text)
    if lines != [], do: Logger.info("PyPort #{state.who} stderr#{origin(ids)}: #{Enum.join(lines, "\n")}")
    :ok
  end

  defp origin([]), do: ""
  defp origin([id]), do: " (request #{number(id)})"

  defp origin(ids) do
    {named, others} = Enum.split(ids, @named_requests)
    more = if others != [], do: " or of #{length(others)} others"
    " (of one of the requests #{Enum.map_join(named, ", ", &number/1)}#{more})"
  end

  defp number(<<number::64>>), do: number
  defp number(id), do: inspect(id)

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
