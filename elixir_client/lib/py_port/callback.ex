defmodule PyPort.Callback do
  # A function among the top-level values of globals, args or kwargs, as it goes over the wire: its place in the list that
  # PyPort.Callbacks keeps for the request. The function itself never leaves the BEAM.
  @moduledoc false

  @enforce_keys [:index, :arity]
  defstruct [:index, :arity]

  @type t :: %__MODULE__{index: non_neg_integer(), arity: arity()}
end
