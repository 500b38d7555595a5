defmodule PyPort.Server.Handle do
  # What a caller needs to reach a server without asking its owner for anything.
  @moduledoc false

  @enforce_keys [:owner, :port, :table, :counter, :os_pid, :start_time, :dir]
  defstruct @enforce_keys ++ [:max_frame_bytes, :max_queued_bytes, :max_pending, ready: false]

  @type t :: %__MODULE__{
          owner: pid(),
          port: port(),
          # Rows {id, alias, caller, deadline, devices}: the requests that have no reply yet. Its size is the load.
          table: :ets.tid(),
          counter: :atomics.atomics_ref(),
          os_pid: pos_integer(),
          start_time: non_neg_integer(),
          dir: Path.t(),
          max_frame_bytes: pos_integer(),
          max_queued_bytes: pos_integer(),
          max_pending: pos_integer(),
          ready: boolean()
        }
end
