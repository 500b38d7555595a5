defmodule PyPort.Server.State do
  # The state of a server: fields that all of its modules read, and parts. Each part is a struct that only the module of its
  # name reads and writes; `test/layers_test.exs` checks that.
  @moduledoc false

  alias PyPort.{Connection, Options}
  alias PyPort.Server.{Cancellation, Health, Ownership, Requests, Shutdown, Startup, Stderr}

  @enforce_keys ~w(options who heir startup requests cancellation ownership health stderr shutdown)a
  defstruct @enforce_keys ++ [:connection, :delivery, :since, phase: :starting]

  @type phase :: :starting | :ready | :down | :dead
  @type t :: %__MODULE__{
          options: Options.server(),
          # The name of the server in Logger.
          who: String.t(),
          phase: phase(),
          # nil while no Python is running.
          connection: Connection.t() | nil,
          # Native monotonic time at which its Python was launched, or became ready.
          since: integer() | nil,
          # The heir of the table of requests, and the process of `PyPort.Server.AsyncDelivery`.
          heir: pid(),
          delivery: pid() | nil,
          startup: Startup.t(),
          requests: Requests.t(),
          cancellation: Cancellation.t(),
          ownership: Ownership.t(),
          health: Health.t(),
          stderr: Stderr.t(),
          shutdown: Shutdown.t()
        }

  # The server goes on; its Python has ended; or its Python is to be killed.
  @type next :: {:ok, t()} | {:exited, t()} | {:kill, why :: atom(), t()}
end
