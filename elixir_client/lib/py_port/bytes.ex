defmodule PyPort.Bytes do
  @moduledoc """
  A binary that Python shall see as `bytes`, whatever it holds.

  Elixir has one type where Python has two. A plain binary arrives as `str` (or, with
  `binary_as: :bytes`, as `bytes`); one wrapped by `PyPort.bytes/1` always arrives as `bytes`.
  """

  @enforce_keys [:data]
  defstruct [:data]

  @type t :: %__MODULE__{data: binary()}
end
