defmodule PyPort.Code do
  @moduledoc """
  Python source that knows where it was written.

  The `~P` and `~PY` sigils (`PyPort.Sigils`) make these. With the file and line at hand a Python
  traceback points to the Elixir file in which the code stands.
  """

  @enforce_keys [:source]
  defstruct [:source, file: "<eval>", line: 1]

  @typedoc "`line` is the line of `file` on which the first line of `source` stands, counted from 1."
  @type t :: %__MODULE__{source: String.t(), file: String.t(), line: pos_integer()}
end
