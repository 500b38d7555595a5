defmodule PyPort.Pool.Waiter do
  # Waits for a server of a pool, in a process of its own so that the manager never waits: until the server is ready, or
  # until it can be taken out. PyPort.Pool.Manager decides when.
  @moduledoc false

  require Logger

  import PyPort.Deadline, only: [deadline: 1, remaining: 1]

  alias PyPort.Server

  # How soon a server that could not start is asked again; it tries on its own, at intervals of its own.
  @ask_again_ms 250
  # How often a server that is taken out is asked whether it has anything left.
  @drain_poll_ms 50
  # Beyond the grace of its Python, a server that is stopped has this long to tidy up.
  @stop_ms 5_000

  # Sends the calling process `{:ready, server, connection}` once, and before it `{:not_ready, server, error}` for
  # each failure.
  @spec announce(pid()) :: pid()
  def announce(server) do
    manager = self()
    spawn_link(fn -> announce(server, manager) end)
  end

  defp announce(server, manager) do
    case Server.await_ready(server, :infinity) do
      {:ok, connection} ->
        send(manager, {:ready, server, connection})

      {:error, error} ->
        # The manager's monitor reports the end of the server.
        if Process.alive?(server) do
          send(manager, {:not_ready, server, error})
          Process.sleep(@ask_again_ms)
          announce(server, manager)
        end
    end
  end

  # Stops a server that gets no new work any more, when it has no request, session or object, or when the time is up.
  @spec drain(pid(), timeout(), shutdown_grace :: non_neg_integer(), who :: String.t()) :: pid()
  def drain(server, timeout, grace, who) do
    deadline = deadline(timeout)
    spawn_link(fn -> drain_until(server, deadline, grace, who) end)
  end

  defp drain_until(server, deadline, grace, who) do
    cond do
      ask_to_retire(server) == :retired ->
        stop_now(server, grace)

      remaining(deadline) == 0 ->
        Logger.warning(
          "PyPort pool #{who}: a server (#{inspect(server)}) still had requests, sessions or objects when its " <>
            "drain_timeout was over; it is stopped, and they end with it"
        )

        stop_now(server, grace)

      true ->
        Process.sleep(@drain_poll_ms)
        drain_until(server, deadline, grace, who)
    end
  end

  defp ask_to_retire(server) do
    GenServer.call(server, :retire)
  catch
    :exit, {:timeout, _call} -> :in_use
    :exit, _gone -> :retired
  end

  # Stops a server that has never taken work.
  @spec stop(pid(), shutdown_grace :: non_neg_integer()) :: pid()
  def stop(server, grace), do: spawn_link(fn -> stop_now(server, grace) end)

  # By the server's own stop and not by its supervisor's, which could start no server while it waits.
  defp stop_now(server, grace) do
    GenServer.stop(server, :shutdown, @stop_ms + grace)
  catch
    :exit, {:timeout, _call} -> Process.exit(server, :kill)
    :exit, _gone -> :ok
  end
end
