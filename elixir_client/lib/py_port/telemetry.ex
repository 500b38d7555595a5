defmodule PyPort.Telemetry do
  @moduledoc """
  The events that PyPort sends to `:telemetry`, if the host application has that library. All durations are in native units of
  `System.monotonic_time/0`, as `:telemetry` has it.

  ## Servers and requests

  The metadata of each of these events has `server` (the pid of the `PyPort.Server`), `name` (what it is registered as, or
  `nil`, as in a pool) and `os_pid` (of its Python, `nil` where there is none).

  | event | measurements | further metadata |
  | --- | --- | --- |
  | `[:py_port, :server, :start]` | `system_time` | a Python was launched |
  | `[:py_port, :server, :ready]` | `duration` since `:start` | it takes requests |
  | `[:py_port, :server, :boot_failure]` | `failures` in a row, `retry_ms` until the next try | `error`, a `PyPort.Error` |
  | `[:py_port, :server, :health]` | `silent_ms`: for how long nothing was heard, `pending` requests | `state` and `previous`, of `PyPort.Status.state` |
  | `[:py_port, :server, :verdict]` | as `:health`, under its name of version 0.1 | `verdict` for `state`, and `previous` |
  | `[:py_port, :server, :dump]` | `duration` of taking the stacks | `reason`; `stack`, text, or `nil` where Python wrote none |
  | `[:py_port, :server, :kill]` | `pending` requests | `reason`: `:request`, `:gil_held`, `:stuck` or `:lost` |
  | `[:py_port, :server, :exit]` | `duration` since `:ready`, `pending` requests | `error`, the report that its callers get |
  | `[:py_port, :request, :cancel]` | `pending` requests | `request`, its number; `reason`: `:timeout`, `:caller_down`, `:stopped` |
  | `[:py_port, :request, :cancelled]` | `duration` since `:cancel` | `request`; `result`, the kind of its answer: `:cancelled`, another kind of error, or `:ok`; `:never_sent` where its caller was killed just before it was sent |

  There are no events for each request that starts and stops: the plain one takes a dozen microseconds, of which two
  events would be a good part, and `:telemetry.span/3` around a call measures the same where it is wanted.

  ## Pools

  The metadata of each of these events has `pool` (the pid of the `PyPort.Pool`) and `name` (what it is registered as, or `nil`).
  Those of a server have `server` and `os_pid`, which its own events have, too, and `index`, its number in the pool, as Logger
  has it. `servers` is how many take work from then on.

  | event | measurements | further metadata |
  | --- | --- | --- |
  | `[:py_port, :pool, :server_in]` | `servers` | `reason`: `:start` of a server in a free place, or why it has taken over from another: `:max_requests`, `:max_age`, `:max_rss` |
  | `[:py_port, :pool, :server_out]` | `servers`; `duration` since it was taken in, `requests` that it was asked | `reason`: `:max_requests`, `:max_age`, `:max_rss`, `:resized`, `:ended` by itself, `:restart` (`after_cancel: :restart`) |
  | `[:py_port, :pool, :resize]` | `size`, and the `previous` one | |

  Handlers run in the pool's manager: a slow handler delays the replacement of servers, and no request.

  ## Batchers

  The metadata of each of these events has `name` (what the `PyPort.Batcher` is registered as, or `nil`) and `batch_key`.

  | event | measurements | further metadata |
  | --- | --- | --- |
  | `[:py_port, :batcher, :batch]` | `size`, the number of items; `errors`, for how many of them; `wait` of its first item; `duration` in Python and back | `reason`: `:size` or `:timeout`; `result`: `:ok`, or the kind of the error of the whole batch |
  | `[:py_port, :batcher, :drop]` | `count` of items that have not begun | `reason`: `:timeout` or `:caller_down` |
  """

  @doc false
  # To look for a module that is not there takes milliseconds, so it is looked for once, when the application starts.
  @spec load() :: :ok
  def load do
    _ = Code.ensure_loaded?(:telemetry)
    :ok
  end

  @doc false
  @spec execute([atom()], map(), map()) :: :ok
  def execute(event, measurements, metadata) do
    if function_exported?(:telemetry, :execute, 3),
      do: apply(:telemetry, :execute, [event, measurements, metadata])

    :ok
  end
end
