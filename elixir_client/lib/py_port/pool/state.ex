defmodule PyPort.Pool.State do
  # The state of a pool's manager.
  @moduledoc false

  alias PyPort.Options
  alias PyPort.Pool.{Members, Slot}

  @enforce_keys [:pool, :who, :options, :members]
  defstruct @enforce_keys ++ [:supervisor, slots: %{}, draining: %{}, miscounted: 0]

  @type t :: %__MODULE__{
          pool: pid(),
          # The name of the pool in Logger.
          who: String.t(),
          options: Options.server(),
          # The supervisor of the servers; nil until the manager has found it.
          supervisor: pid() | nil,
          slots: %{optional(pos_integer()) => Slot.t()},
          # The servers that are being taken out. Slot 0 is for one that an earlier manager has left.
          draining: %{optional(pid()) => %{slot: non_neg_integer(), why: atom()}},
          # By how much the count of the queue was wrong at the last look.
          miscounted: integer(),
          # The servers that take work, as callers see them.
          members: Members.t()
        }

  @spec put_slot(t(), pos_integer(), Slot.t()) :: t()
  def put_slot(%{slots: slots} = state, index, slot), do: %{state | slots: Map.put(slots, index, slot)}
end
