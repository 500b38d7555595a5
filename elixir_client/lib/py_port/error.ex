defmodule PyPort.Error do
  @moduledoc """
  What went wrong, as a value and as an exception.

  `kind` says what to do about it:

  | kind | what happened |
  | --- | --- |
  | `:python` | the code raised; `type`, `message`, `traceback` and `frames` are Python's own report |
  | `:timeout` | no answer within `timeout:` |
  | `:cancelled` | the request was cancelled |
  | `:exited` | the Python process ended; `exit_status` and `stderr` say how |
  | `:killed` | the Python process was ended by a signal; `signal` names it |
  | `:overloaded` | too much is waiting already; nothing was sent |
  | `:encode` | the result has no counterpart in Elixir, or is too large or too deep |
  | `:decode` | an argument or a reply could not be read |
  | `:protocol` | the two sides did not understand each other |
  | `:unavailable` | no server is running under that name, or it could not be started |

  `begun` tells a caller who wants to repeat a request that was lost: `false` where it is certain that
  its code never started, `nil` where nobody can tell.
  """

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
          stack: String.t() | nil
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
    frames: [],
    stderr: []
  ]

  # Atoms come from this list and never from the wire.
  @kinds ~w(python timeout cancelled exited killed overloaded encode decode protocol unavailable)a

  @impl true
  def message(%__MODULE__{kind: :python, traceback: traceback}) when traceback not in [nil, ""] do
    String.trim_trailing(traceback)
  end

  def message(%__MODULE__{} = error) do
    [headline(error), stack(error.stack), stderr(error.stderr)]
    |> Enum.reject(&is_nil/1)
    |> Enum.join("\n")
  end

  defp headline(%{kind: :python, type: type, message: message}) when type not in [nil, ""],
    do: "#{type}: #{message}"

  defp headline(%{message: message}), do: message

  defp stack(nil), do: nil
  defp stack(text), do: "Python was here:\n" <> indent(text)

  defp stderr([]), do: nil
  defp stderr(lines), do: "The last it wrote to stderr:\n" <> indent(Enum.join(lines, "\n"))

  defp indent(text), do: text |> String.split("\n") |> Enum.map_join("\n", &("    " <> &1))

  @doc false
  # The map of an `{error, Id, Map}` frame. A field of the wrong type is dropped, never raised about:
  # the report of an error must not fail.
  @spec from_wire(term()) :: t()
  def from_wire(%{} = map) do
    %__MODULE__{
      kind: if(map[:kind] in @kinds, do: map[:kind], else: :protocol),
      type: text(map[:type]),
      message: if(is_binary(map[:message]), do: map[:message], else: "Python gave no message"),
      traceback: text(map[:traceback]),
      frames: for(%{file: _, line: _, function: _} = frame <- List.wrap(map[:frames]), do: frame),
      begun: if(is_boolean(map[:begun]), do: map[:begun]),
      stack: text(map[:stack])
    }
  end

  def from_wire(other) do
    %__MODULE__{kind: :protocol, message: "Python reported an error of an unknown shape: #{inspect(other)}"}
  end

  defp text(""), do: nil
  defp text(value) when is_binary(value), do: value
  defp text(_value), do: nil

  @doc false
  @spec not_started() :: t()
  def not_started do
    %__MODULE__{
      kind: :unavailable,
      begun: false,
      message:
        "the application :py_port is not started; start it with Application.ensure_all_started(:py_port)"
    }
  end

  @doc false
  @spec released(PyPort.Object.t()) :: t()
  def released(object) do
    %__MODULE__{
      kind: :unavailable,
      begun: false,
      message: "#{inspect(object)} has been released, or has ended with its owner or its server"
    }
  end

  @doc false
  # What a caller makes of the reason for which its server ended.
  @spec of_exit(term()) :: t()
  def of_exit({:shutdown, %__MODULE__{} = error}), do: error

  def of_exit(:noconnection) do
    %__MODULE__{
      kind: :unavailable,
      message: "the node of the server went down, or cannot be reached any more, before there was an answer"
    }
  end

  def of_exit(:noproc) do
    %__MODULE__{
      kind: :unavailable,
      begun: false,
      message: "the server is not running, or is just being restarted"
    }
  end

  def of_exit(reason) when reason in [:normal, :shutdown] do
    %__MODULE__{kind: :exited, message: "the server was stopped before it answered"}
  end

  def of_exit({:shutdown, _reason}), do: of_exit(:shutdown)

  def of_exit(reason) do
    %__MODULE__{
      kind: :exited,
      message: "the process that owns the port ended: #{Exception.format_exit(reason)}"
    }
  end

  @doc false
  @spec death(exit_status :: non_neg_integer() | nil, stderr :: [String.t()]) :: t()
  def death(nil, stderr) do
    %__MODULE__{
      kind: :exited,
      message: "the Python process ended; its exit status is not known",
      stderr: stderr
    }
  end

  # The port reports a signal as 128 + its number.
  def death(status, stderr) when status > 128 and status <= 192 do
    signal = signal_name(status - 128)

    %__MODULE__{
      kind: :killed,
      signal: signal,
      message: "the Python process was ended by #{signal}",
      stderr: stderr
    }
  end

  def death(status, stderr) do
    %__MODULE__{
      kind: :exited,
      exit_status: status,
      message: "the Python process ended with exit status #{status}",
      stderr: stderr
    }
  end

  # The numbers are Linux's; those below 16 are POSIX's own.
  @signals %{
    1 => "SIGHUP",
    2 => "SIGINT",
    3 => "SIGQUIT",
    4 => "SIGILL",
    6 => "SIGABRT",
    7 => "SIGBUS",
    8 => "SIGFPE",
    9 => "SIGKILL",
    11 => "SIGSEGV",
    13 => "SIGPIPE",
    14 => "SIGALRM",
    15 => "SIGTERM",
    24 => "SIGXCPU",
    25 => "SIGXFSZ",
    31 => "SIGSYS"
  }
  defp signal_name(number), do: Map.get(@signals, number, "signal #{number}")
end
