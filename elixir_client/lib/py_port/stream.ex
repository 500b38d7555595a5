defmodule PyPort.Stream do
  # A Python generator as a lazy enumerable, from its consumer's side. A PyPort.Stream.Relay collects the items: the
  # consumer's mailbox never holds any, and they are fetched many at a time.
  @moduledoc false

  import PyPort.Deadline, only: [deadline: 1]

  alias PyPort.{Callbacks, Error, Locator, Options, Ownership, Remote, Reply, Request}
  alias PyPort.Stream.Relay

  @spec new(Request.asked(), keyword()) :: Enumerable.t()
  def new(asked, options) do
    # Wrong options raise where the stream is made, not where it is run.
    options = Options.stream!(options)
    _place = Locator.place(options, Request.target(asked), [])

    fn -> start(asked, options) end
    |> Elixir.Stream.resource(&next/1, &stop/1)
    # Items are read one by one as they are consumed: the objects in those that never are remain unclaimed, and are
    # released with the relay.
    |> Elixir.Stream.map(&value/1)
  end

  # A stream that Python has been asked for, wherever its server lives, with the functions among its values.
  @type opened :: %{
          owner: pid(),
          id: PyPort.Wire.id(),
          functions: [Callbacks.row()],
          relay: pid(),
          patience: pos_integer()
        }

  # Asks Python for a stream; `consumer` is this process, or one on another node for which it stands in.
  @spec open(Request.asked(), map(), pid()) :: {:ok, opened()} | {:error, Error.t()}
  def open(asked, options, consumer), do: open(asked, Request.draft(asked), options, consumer, nil)

  defp open(asked, draft, options, consumer, turn) do
    place = Locator.place(options, draft.target, draft.found.objects)
    deadline = deadline(options.timeout)

    case Request.prepare(draft, options, place, deadline, consumer, turn) do
      {how, connection, id, frame, extra, functions} ->
        request = {id, frame, extra, functions}
        relay = Relay.start(connection, request, options.credit, consumer, how in [:member, :turn])
        patience = Request.patience(connection)
        {:ok, %{owner: connection.owner, id: id, functions: functions, relay: relay, patience: patience}}

      {:remote, node, server} ->
        # Each item has the whole timeout for itself.
        there = %{Remote.options(options, server, deadline) | timeout: options.timeout}
        args = [Request.encoded(asked, draft), there, consumer]
        with {:ok, outcome} <- Remote.call(node, __MODULE__, :open, args, deadline), do: outcome

      {:error, error} ->
        {:error, error}
    end
  end

  # Functions have other numbers each time, because Python may drop those of an earlier stream at any time.
  defp start(asked, options, turn \\ nil) do
    since = turn || System.monotonic_time()
    draft = Request.draft(asked)

    case open(asked, draft, options, self(), turn) do
      {:ok, opened} ->
        place = Locator.place(options, draft.target, draft.found.objects)
        Map.merge(opened, %{options: options, ended: nil, again: {asked, place, since}})

      {:error, error} ->
        raise error
    end
  end

  defp next(%{ended: nil} = stream) do
    case Relay.more(stream.relay, stream.options.timeout) do
      {:items, frames} -> {tagged(frames, stream), stream}
      {:last, frames, ending} -> {tagged(frames, stream), %{stream | ended: ending}}
      :timeout -> {[], %{stream | ended: {:error, timed_out(stream)}}}
    end
  end

  defp next(%{ended: {:frame, frame}} = stream) do
    case Reply.outcome(frame) do
      {:error, error} ->
        raise error

      {:ok, _returned} ->
        {:halt, stream}

      # The value that the generator returned has no place in an enumerable; the handles in it have no reader.
      _objects_or_unread ->
        Ownership.disclaim(stream.owner, {:reply, stream.id})
        {:halt, stream}
    end
  end

  defp next(%{ended: {:down, reason}} = stream), do: raise(Error.of_exit(reason, stream.id))

  defp next(%{ended: {:error, error}}), do: raise(error)

  # Another request takes long on that server.
  defp next(%{ended: :recalled} = stream), do: again(stream)

  # Asked of another server of the pool, if it was one.
  defp next(%{ended: :not_sent, again: {_asked, place, _since}} = stream) do
    if Locator.again?(place, deadline(stream.options.timeout)) do
      again(stream)
    else
      {:error, error} = Locator.not_taken(place)
      raise error
    end
  end

  defp next(%{ended: {:full, error}, again: {_asked, place, _since}} = stream),
    do: if(Locator.again?(place, deadline(stream.options.timeout)), do: again(stream), else: raise(error))

  defp again(%{again: {asked, _place, since}, options: options} = stream) do
    stop(stream)
    {[], start(asked, options, since)}
  end

  # A stream that has ended need not be waited for.
  defp stop(%{ended: nil} = stream), do: Relay.stop(stream.relay, stream.patience)
  defp stop(stream), do: Relay.stop(stream.relay, 0)

  # Most items hold no handle, and need nothing but their bytes.
  defp tagged(frames, stream), do: Enum.map(frames, &tag(&1, stream))

  defp tag(<<131, 104, 3, _::binary>> = frame, _stream), do: frame
  defp tag(frame, stream), do: {frame, stream}

  defp value(frame) when is_binary(frame) do
    case Reply.outcome(frame) do
      {:ok, value} -> value
      {_error, error} -> raise error
    end
  end

  defp value({frame, stream}) do
    case Reply.outcome(frame) do
      {:objects, value, ids} ->
        with :ok <- Ownership.take_over(stream.owner, {:reply, stream.id}, ids, stream.options.owner),
             {:ok, value} <- Callbacks.restore(stream.owner, value, ids, stream.functions) do
          if node(stream.owner) == node(),
            do: Ownership.collectable(value, ids, stream.options.owner),
            else: value
        else
          {:error, error} -> raise error
        end

      {_unread, error} ->
        Ownership.disclaim(stream.owner, {:reply, stream.id})
        raise error
    end
  end

  # The generator was told to stop; the error has its place at that time. An exception that it raised instead is its own
  # error.
  defp timed_out(%{options: %{timeout: timeout}} = stream) do
    way = if node(stream.relay) == node(), do: 0, else: Remote.way_ms()

    case Relay.give_up(stream.relay, stream.patience + way) do
      {:timed_out, begun, {:importing, _name} = where, _culprit} ->
        Error.timeout(timeout, begun, where)

      {:timed_out, begun, stack, culprit} ->
        no_item(Error.timeout(timeout, begun, stack, culprit))

      {:down, reason} ->
        Error.of_exit(reason, stream.id)

      {full_or_error, error} when full_or_error in [:full, :error] ->
        error

      :not_sent ->
        Error.of_exit(:noproc)

      :recalled ->
        no_item(Error.timeout(timeout, false, nil))

      {:frame, frame} ->
        case Reply.outcome(frame) do
          {:error, %Error{kind: :cancelled} = error} -> timeout |> Error.timeout(error) |> no_item()
          {:error, error} -> error
          _ended -> no_item(Error.timeout(timeout, true, nil))
        end
    end
  end

  # Its timeout is for each of its items.
  defp no_item(error), do: %{error | message: String.replace_prefix(error.message, "no answer", "no item")}
end
