defmodule PyPort.Pool.Waiter do
  # What a pool has to wait for, each time in a process of its own so that its manager never waits: a server that starts,
  # and one that is taken out. What follows from it is PyPort.Pool.Manager's to decide.
  @moduledoc false

  require Logger

  alias PyPort.Server

  # How soon a server that could not start is asked again; it tries on its own, at intervals of its own.
  @ask_again_ms 250
  # How often a server that is taken out is asked whether it has anything left.
  @drain_poll_ms 50
  # Beyond the time that its Python is given, a server that is stopped has this long to see to the rest.
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
        # That it has ended the manager knows from its monitor.
        if Process.alive?(server) do
          send(manager, {:not_ready, server, error})
          Process.sleep(@ask_again_ms)
          announce(server, manager)
        end
    end
  end

  # Stops a server, which gets no new work any more, when nothing of anybody's is left on it, or when the time is up.
  @spec drain(pid(), timeout(), shutdown_grace :: non_neg_integer(), who :: String.t()) :: pid()
  def drain(server, timeout, grace, who) do
    deadline = if timeout == :infinity, do: :infinity, else: now() + timeout
    spawn_link(fn -> drain_until(server, deadline, grace, who) end)
  end

  defp drain_until(server, deadline, grace, who) do
    cond do
      ask_to_retire(server) == :retired ->
        stop_now(server, grace)

      now() >= deadline ->
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

  # By the server's own stop and not by its supervisor's, which would start nothing while it waits.
  defp stop_now(server, grace) do
    GenServer.stop(server, :shutdown, @stop_ms + grace)
  catch
    :exit, {:timeout, _call} -> Process.exit(server, :kill)
    :exit, _gone -> :ok
  end

  defp now, do: System.monotonic_time(:millisecond)
end
