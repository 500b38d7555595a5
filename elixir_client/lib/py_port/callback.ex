defmodule PyPort.Callback do
  # A function among the values of a request, or in an answer to Python, as it goes over the wire: the number under which
  # PyPort.Callbacks keeps it. The function itself never leaves the BEAM.
  @moduledoc false

  @enforce_keys [:index, :arity]
  defstruct [:index, :arity, name: "fn"]

  @type t :: %__MODULE__{index: non_neg_integer(), arity: arity(), name: String.t()}

  @spec new(fun(), non_neg_integer()) :: t()
  def new(fun, number) do
    [arity: arity, type: type, name: name] = Enum.map([:arity, :type, :name], &Function.info(fun, &1))
    # Others have a name that the compiler made.
    name = if type == :external, do: Atom.to_string(name), else: "fn"
    %__MODULE__{index: number, arity: arity, name: name}
  end
end
