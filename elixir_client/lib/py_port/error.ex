defmodule PyPort.Error do
  @moduledoc """
  An error, as a value and as an exception.

  `kind` says what to do about it:

  | kind | what happened |
  | --- | --- |
  | `:python` | the code raised; `type`, `message`, `traceback` and `frames` are Python's own report |
  | `:timeout` | no answer within `timeout:`; the request was ended in Python, too. `stack` says where it was |
  | `:cancelled` | the request was cancelled |
  | `:exited` | the Python process ended; `exit_status` and `stderr` say how |
  | `:killed` | the Python process was ended by a signal; `signal` names it, `message` says who sent it if it was PyPort |
  | `:overloaded` | too many requests are waiting already; this one was not sent |
  | `:encode` | the result has no counterpart in Elixir, or is too large or too deep |
  | `:decode` | an argument or a reply could not be read |
  | `:protocol` | the two sides did not understand each other |
  | `:unavailable` | no server is running under that name, or it could not be started |

  ## Requests without an answer

  No request is sent twice. `begun` tells a caller that wants to repeat a request what became of the first one: `false`, its
  code was never started; `true`, it was started, and was ended on its way; `nil`, not known. docs/reliability.md says how it
  is found out.

  `stack` is where Python was, as text: the traceback of a request that was interrupted, the stacks of all threads where
  it did not end by itself (`PyPort.stacks/1`), or what `faulthandler` wrote at a crash. `frames` has the first of these
  frame by frame, outermost first. `stderr` has the last lines that a Python that has ended wrote there, `exit_status` or
  `signal` how it ended.

  `culprit` is set if a Python was killed, or a request could not be ended, because of another request: `request` is its
  number, as in the metadata of log records, and `code` the beginning of its code, if it kept the event loop from running.
  Without a number the interpreter was held, and `stack` shows by which code.

  `attributes` has the attributes that the code has set on an exception (`self.status = 404`), by their names, as far as they have a
  counterpart in Elixir and take no more than 64 KiB. With `error_value: true` among the options of the request, `value` is the exception itself, a
  `PyPort.Object`; as long as it is held, so are the frames of its traceback and all their variables.

  A request that was told to end, because its time was up or its answer is not wanted any more, is of kind `:timeout` or
  `:cancelled`, whatever its code makes of that. If the code raised an exception of its own (`RuntimeError: Query
  interrupted`), `type`, `traceback` and `frames` are those of that exception, and `message` has its text.
  """

  alias PyPort.StatusPage

  @type kind ::
          :python
          | :timeout
          | :cancelled
          | :exited
          | :killed
          | :overloaded
          | :encode
          | :decode
          | :protocol
          | :unavailable

  @type frame :: %{
          file: String.t(),
          line: pos_integer() | nil,
          function: String.t(),
          source: String.t() | nil
        }

  @type culprit :: %{request: pos_integer() | nil, code: String.t() | nil}

  @type t :: %__MODULE__{
          kind: kind(),
          type: String.t() | nil,
          message: String.t(),
          traceback: String.t() | nil,
          frames: [frame()],
          exit_status: non_neg_integer() | nil,
          signal: String.t() | nil,
          stderr: [String.t()],
          begun: boolean() | nil,
          stack: String.t() | nil,
          culprit: culprit() | nil,
          attributes: %{String.t() => term()},
          value: PyPort.Object.t() | nil
        }

  defexception [
    :kind,
    :type,
    :message,
    :traceback,
    :exit_status,
    :signal,
    :begun,
    :stack,
    :culprit,
    :value,
    attributes: %{},
    frames: [],
    stderr: []
  ]

  # Atoms come from this list and never from the wire.
  @kinds ~w(python timeout cancelled exited killed overloaded encode decode protocol unavailable)a

  @doc false
  @spec kinds() :: [kind()]
  def kinds, do: @kinds

  @more_time "Give it more time with the option :timeout"

  # The exceptions that Python raises for code which does not compile.
  @unreadable ~w(SyntaxError IndentationError TabError)

  @impl true
  # The same types, raised by code that runs, come with a traceback of that code.
  def message(%__MODULE__{kind: :python, type: type, traceback: traceback}) when traceback not in [nil, ""] do
    report = String.trim_trailing(traceback)
    ran? = type not in @unreadable or String.starts_with?(report, "Traceback ")
    if ran?, do: fold(report), else: "Python cannot read this:\n" <> report
  end

  def message(%__MODULE__{} = error) do
    where = error.stack || if(error.kind == :cancelled, do: error.traceback)

    [headline(error), where && stack(where), stderr(error.stderr, where)]
    |> Enum.reject(&(&1 in [nil, ""]))
    |> Enum.join("\n")
  end

  defp headline(%{kind: :python, type: type, message: message}) when type not in [nil, ""],
    do: "#{type}: #{message}"

  defp headline(%{message: message}), do: message

  # The server's own frames stand in the field and not here: they are in every stack, and never the reason.
  defp stack(text) do
    lines = text |> String.trim_trailing() |> String.split("\n")
    theirs = lines |> Enum.reject(&own_frame?/1) |> without_empty_threads()
    if Enum.any?(theirs, &frame?/1), do: here(theirs), else: here(lines)
  end

  defp here(lines),
    do: "Python was here:\n" <> (lines |> Enum.join("\n") |> fold() |> String.split("\n") |> indent())

  # Up to so many lines a report is shown as it is.
  @shown_lines 40

  @doc false
  # A long report with the frames inside of libraries left out, but for the first and the last of each run.
  @spec fold(String.t()) :: String.t()
  def fold(report) do
    lines = String.split(report, "\n")

    if length(lines) <= @shown_lines do
      report
    else
      lines
      |> Enum.chunk_while([], &by_frame/2, &{:cont, Enum.reverse(&1), []})
      |> Enum.chunk_by(&library_frame/1)
      |> Enum.flat_map(&shorten/1)
      |> Enum.join("\n")
    end
  end

  # A frame is its headline and the deeper lines behind it: its source, marks below that.
  defp by_frame(line, lines) do
    with [headline | _] <- Enum.reverse(lines),
         {margin, _file} <- file_of(headline),
         true <- String.starts_with?(line, margin <> "  ") and file_of(line) == nil do
      {:cont, [line | lines]}
    else
      [] -> {:cont, [line]}
      _another -> {:cont, Enum.reverse(lines), [line]}
    end
  end

  defp library_frame([headline | _source]) do
    with {margin, file} <- file_of(headline),
         true <- file =~ ~r/\/(site|dist)-packages\/|\/lib\/python3[.\d]*t?\/|^<frozen /,
         do: margin
  end

  defp file_of(line) do
    with [_, margin, file] <- Regex.run(~r/^([ |]*)File "([^"]*)", line \d+/, line), do: {margin, file}
  end

  defp shorten([first, _, _, _, _ | _] = frames) do
    case library_frame(first) do
      margin when is_binary(margin) ->
        count = "#{margin}[... #{length(frames) - 2} frames in libraries: see the field traceback ...]"
        first ++ [count | List.last(frames)]

      _other ->
        Enum.concat(frames)
    end
  end

  defp shorten(frames), do: Enum.concat(frames)

  defp frame?(line), do: line =~ ~r/^\s*File "/

  defp own_frame?(line),
    do: line =~ ~r/^\s*File "[^"]*port_server\/(server|runtime)\/|^\s*File "<string>", line 1 in <module>/

  # A thread that runs only the server is left with its headline; a thread that has only just begun has no frame.
  defp without_empty_threads([line | rest]) do
    next = List.first(rest, "")

    cond do
      line =~ "(most recent call first)" and next == "" -> rest |> Enum.drop(1) |> without_empty_threads()
      line =~ ~r/^Thread / and next =~ "<no Python frame>" -> rest |> Enum.drop(2) |> without_empty_threads()
      true -> [line | without_empty_threads(rest)]
    end
  end

  defp without_empty_threads([]), do: []

  # A dump of stacks is written to stderr as well; once is enough.
  defp stderr(lines, where) do
    shown = where |> to_string() |> String.split("\n", trim: true) |> MapSet.new(&String.trim/1)

    case Enum.reject(lines, &(String.trim(&1) in shown)) do
      [] -> nil
      lines -> "The last it wrote to stderr:\n" <> indent(lines)
    end
  end

  defp indent(lines), do: Enum.map_join(lines, "\n", &String.trim_trailing("    " <> &1))

  @doc false
  # The map of an `{error, Id, Map}` frame. A field of the wrong type is dropped, never raised about:
  # the report of an error must not fail.
  @spec from_wire(term()) :: t()
  def from_wire(%{} = map) do
    %__MODULE__{
      kind: if(map[:kind] in @kinds, do: map[:kind], else: :protocol),
      type: text(map[:type]),
      message: wire_message(map),
      traceback: text(map[:traceback]),
      frames: for(%{file: _, line: _, function: _} = frame <- List.wrap(map[:frames]), do: frame),
      begun: if(is_boolean(map[:begun]), do: map[:begun]),
      stack: text(map[:stack]),
      attributes: attributes(map[:attributes]),
      value: map[:value]
    }
  end

  def from_wire(other) do
    new(
      :protocol,
      "Python reported an error of an unknown shape: #{inspect(other)}. Does the port_server in its environment belong to " <>
        "this library? mix py_port.doctor tells"
    )
  end

  # Python raises it in a request that is to end; the code may make another exception of it.
  @cancelled "port_server.Cancelled"

  defp wire_message(%{kind: :cancelled, type: type, message: message})
       when is_binary(type) and is_binary(message) and type not in ["", @cancelled],
       do: "the request was told to end while it ran, and ended with #{type}: #{message}"

  # Python is not told why it is to end a request.
  defp wire_message(%{kind: :cancelled, begun: false}),
    do: "the request was cancelled before it began: its caller has ended, or does not want it any more"

  defp wire_message(%{kind: :cancelled, begun: true}),
    do: "the request was cancelled while it ran: its caller has ended, or does not want it any more"

  defp wire_message(%{message: message}) when is_binary(message), do: message
  defp wire_message(_map), do: "Python gave no message"

  # Each is a term of its own, so that one with an atom of Python's own is no reason to lose the error.
  defp attributes(pairs) when is_list(pairs) do
    for {name, term} <- pairs, {:ok, value} <- [term(term)], into: %{}, do: {name, value}
  end

  defp attributes(_none), do: %{}

  defp term(term) do
    {:ok, :erlang.binary_to_term(term, [:safe])}
  rescue
    ArgumentError -> :error
  end

  defp text(""), do: nil
  defp text(value) when is_binary(value), do: value
  defp text(_value), do: nil

  @doc false
  @spec new(kind(), String.t(), keyword()) :: t()
  def new(kind, message, fields \\ []), do: struct!(__MODULE__, [kind: kind, message: message] ++ fields)

  @doc false
  @spec not_started() :: t()
  def not_started,
    do:
      unavailable(
        "the application :py_port is not started; start it with Application.ensure_all_started(:py_port)"
      )

  @doc false
  # For a request that was not sent.
  @spec unavailable(String.t()) :: t()
  def unavailable(message), do: new(:unavailable, message, begun: false)

  @doc false
  @spec released(PyPort.Object.t()) :: t()
  def released(object),
    do: unavailable("#{inspect(object)} has been released, or has ended with its owner or its server")

  @doc false
  @spec no_word_of(PyPort.Object.t()) :: t()
  def no_word_of(object) do
    new(:timeout, "the server of #{inspect(object)} did not answer; whether it has a new owner is not known")
  end

  @doc false
  # No answer in time, by the server's knowledge of the request.
  @spec timeout(
          timeout(),
          boolean() | nil,
          where :: String.t() | {:importing, String.t()} | nil,
          culprit() | nil
        ) :: t()
  def timeout(timeout, begun, where, culprit \\ nil)

  def timeout(timeout, begun, {:importing, name}, _culprit) do
    new(
      :timeout,
      "no answer within #{timeout} ms: the request was importing #{name}, which goes on, since an import that is cut " <>
        "short leaves the module broken. Ask again in a moment, import it in the :init_code of the server, or give " <>
        "the request more time with the option :timeout",
      begun: begun
    )
  end

  def timeout(timeout, begun, stack, culprit) do
    message = if culprit, do: blocked(timeout, culprit), else: timeout_message(timeout, begun, stack)
    new(:timeout, message, begun: begun, stack: stack, culprit: culprit)
  end

  defp blocked(timeout, %{request: nil}),
    do:
      "no answer within #{timeout} ms: the interpreter was held, so that the request could not be told to end"

  defp blocked(timeout, %{request: number, code: nil}),
    do:
      "no answer within #{timeout} ms: Python was killed, since request #{number} did not end when it was told to"

  defp blocked(timeout, culprit) do
    "no answer within #{timeout} ms: #{blocks(culprit)}, so that this one could not go on, nor be told to end. " <>
      unblock(culprit)
  end

  @doc false
  @spec blocks(culprit()) :: String.t()
  def blocks(%{request: number}), do: "request #{number} kept the event loop from running"

  @doc false
  @spec unblock(culprit()) :: String.t()
  def unblock(%{code: code}),
    do:
      "Let what blocks run in a thread (asyncio.to_thread). Its code: #{inspect(code, printable_limit: :infinity)}"

  @doc false
  # No answer in time, by Python's last word on the request.
  @spec timeout(timeout(), t()) :: t()
  def timeout(timeout, %__MODULE__{begun: begun, type: type} = cancelled) do
    stack = cancelled.traceback || cancelled.stack

    message =
      cond do
        type not in [nil, @cancelled] ->
          "no answer within #{timeout} ms: #{cancelled.message}. #{@more_time}"

        begun && stack ->
          "no answer within #{timeout} ms: the request was ended where it was. #{@more_time}"

        true ->
          timeout_message(timeout, begun, stack)
      end

    %{cancelled | kind: :timeout, stack: stack, message: message}
  end

  defp timeout_message(timeout, begun, stack) do
    "no answer within #{timeout} ms: " <>
      case {begun, stack} do
        {false, _none} -> "the request was still waiting for its turn, and was never begun"
        {true, stack} when stack != nil -> "the request was running, and did not end when it was told to"
        {_begun, _stack} -> "the server was busy with this request, or with others"
      end <> ". " <> @more_time
  end

  @doc false
  # The error of a caller whose server ended for `reason`; the `id` of its request tells whether it had begun.
  @spec of_exit(term(), PyPort.Wire.id() | nil) :: t()
  def of_exit(reason, id \\ nil)

  # The request is the culprit itself.
  def of_exit(
        {:shutdown, {:python_ended, %__MODULE__{culprit: %{request: number}} = error, _page}},
        <<number::64>>
      ) do
    %{error | begun: true, message: String.replace(error.message, "request #{number} ", "this request ")}
  end

  def of_exit({:shutdown, {:python_ended, %__MODULE__{} = error, page}}, id) when page != nil and id != nil,
    do: %{error | begun: StatusPage.begun(page, id)}

  def of_exit({:shutdown, {:python_ended, %__MODULE__{} = error, _page}}, _id), do: error
  def of_exit({:shutdown, {:restart, %__MODULE__{} = error}}, _id), do: error
  def of_exit(reason, _id), do: of_owner(reason)

  defp of_owner(:noconnection),
    do:
      new(
        :unavailable,
        "the node of the server went down, or cannot be reached any more, before there was an answer"
      )

  defp of_owner(:noproc), do: unavailable("the server is not running, or is just being restarted")

  defp of_owner(reason) when reason in [:normal, :shutdown],
    do: new(:exited, "the server was stopped before it answered; ask again when it runs")

  defp of_owner({:shutdown, _reason}), do: of_owner(:shutdown)

  defp of_owner(reason),
    do: new(:exited, "the process that owns the port ended: #{Exception.format_exit(reason)}")

  @doc false
  # The report of a Python that has ended.
  @spec exited(exit_status :: non_neg_integer() | nil, stderr :: [String.t()]) :: t()
  def exited(nil, stderr),
    do: new(:exited, "the Python process ended; its exit status is not known", stderr: stderr)

  # The port reports a signal as 128 + its number.
  def exited(status, stderr) when status > 128 and status <= 192 do
    signal = signal_name(status - 128)
    message = "the Python process was ended by #{signal}" <> meaning(signal)
    new(:killed, message, signal: signal, stderr: stderr)
  end

  def exited(status, stderr) do
    message = "the Python process ended with exit status #{status}"
    new(:exited, message, exit_status: status, stderr: stderr)
  end

  defp meaning(signal) when signal in ["SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"],
    do: ": native code crashed, most likely that of a library which was called"

  defp meaning("SIGKILL"),
    do: ", which PyPort has not sent: often it is the kernel, when memory is short (dmesg tells)"

  defp meaning("SIGSYS"), do: ": a system call that is not allowed here (seccomp)"
  defp meaning("SIGXCPU"), do: ": it has used the processor time that it may (ulimit -t)"
  defp meaning(_signal), do: ", which PyPort has not sent"

  # The numbers are Linux's; those below 16 are POSIX's own.
  @numbers [1, 2, 3, 4, 6, 7, 8, 9, 11, 13, 14, 15, 24, 25, 31]
  @names ~w(SIGHUP SIGINT SIGQUIT SIGILL SIGABRT SIGBUS SIGFPE SIGKILL SIGSEGV SIGPIPE SIGALRM SIGTERM) ++
           ~w(SIGXCPU SIGXFSZ SIGSYS)
  @signals @numbers |> Enum.zip(@names) |> Map.new()

  defp signal_name(number), do: Map.get(@signals, number, "signal #{number}")

  defimpl Inspect do
    import Inspect.Algebra

    # As a person reads it, line by line: in a shell, and in the message of a match that failed.
    def inspect(error, _options) do
      begun = if error.begun == nil, do: "", else: ", begun: #{error.begun}"
      lines = error |> PyPort.Error.message() |> String.split("\n") |> Enum.map(&concat(line(), string(&1)))
      concat(["#PyPort.Error<#{Kernel.inspect(error.kind)}#{begun}", nest(concat(lines), 2), line(), ">"])
    end
  end
end
