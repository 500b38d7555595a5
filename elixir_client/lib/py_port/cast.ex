defmodule PyPort.Cast do
  # A request without an answer. A process of its own sends it and waits, and has what belongs to a caller; the caller goes on
  # when the request has been sent, so that the requests of one caller reach one server in their order.
  @moduledoc false

  require Logger

  alias PyPort.{Error, Request}

  @spec cast(Request.asked(), map()) :: :ok | {:error, Error.t()}
  def cast({:call, target, _args, _kwargs} = asked, options) do
    caller = self()
    callers = [caller | Process.get(:"$callers", [])]
    metadata = with :undefined <- :logger.get_process_metadata(), do: %{}

    worker =
      spawn(fn ->
        Process.put(:"$callers", callers)
        :logger.set_process_metadata(metadata)
        receive do: ({:begin, ref} -> ask(asked, Map.put(options, :sent, ref), ref, caller, target))
      end)

    ref = :erlang.monitor(:process, worker, alias: :demonitor)
    send(worker, {:begin, ref})

    receive do
      {^ref, :sent} -> told(worker, ref, :sent, :ok)
      {^ref, {:raise, error}} -> raise error
      {^ref, {:error, error}} -> told(worker, ref, :error, {:error, error})
      {:DOWN, ^ref, :process, _worker, reason} -> {:error, Error.of_exit(reason)}
    end
  end

  # Tells the worker which of its two messages has arrived.
  defp told(worker, ref, what, result) do
    Process.demonitor(ref, [:flush])
    send(worker, {ref, what})

    receive do
      {^ref, _late} -> result
    after
      0 -> result
    end
  end

  defp ask(asked, options, ref, caller, target) do
    case Request.ask(asked, options) do
      {:ok, _value} -> :ok
      {:error, error} -> failed(error, ref, caller, target)
    end
  rescue
    error in ArgumentError -> send(ref, {ref, {:raise, error}})
  end

  # The caller gets the error of a request that was not sent, Logger that of any other.
  defp failed(error, ref, caller, target) do
    send(ref, {ref, {:error, error}})
    monitor = Process.monitor(caller)

    receive do
      {^ref, :error} -> :ok
      {^ref, :sent} -> log(error, target)
      {:DOWN, ^monitor, :process, _caller, _reason} -> log(error, target)
    end
  end

  defp log(error, target),
    do: Logger.error("PyPort: the cast of #{inspect(target)} has failed: #{Exception.message(error)}")
end
