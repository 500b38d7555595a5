defmodule PyPort.Admission do
  # Sends a request if its server takes one more now. Runs in the caller's process.
  @moduledoc false

  alias PyPort.{Callbacks, Connection, Error}

  # Whether a frame is one that the server can ever take.
  @spec fits(Connection.t(), iodata()) :: :ok | {:error, Error.t()}
  def fits(%{max_frame_bytes: most}, frame) do
    case :erlang.iolist_size(frame) do
      bytes when bytes > most ->
        message =
          "the request takes #{bytes} bytes, the limit is #{most}: send less at once, or start the server with a " <>
            "larger max_frame_bytes"

        {:error, Error.new(:encode, message, begun: false)}

      _bytes ->
        :ok
    end
  end

  # Sends a request, if the server takes one more now. Its row is in the table before anything is decided, so callers that
  # come together see each other. A request that is not sent leaves no row there. Gives how many are open with it; `:full` where
  # more are open than may.
  @spec send_request(Connection.t(), tuple(), [Callbacks.row()], iodata()) ::
          {:ok, open :: pos_integer()} | :not_sent | {:full | :error, Error.t()}
  def send_request(connection, row, functions, frame) do
    if Connection.insert(connection, row) do
      open = Connection.pending(connection)

      if open > connection.max_pending do
        why = "#{open - 1} of at most #{connection.max_pending} requests are open (max_pending)"
        {:full, refuse(connection, row, why)}
      else
        Callbacks.keep(connection, functions)

        case Connection.submit(connection, frame) do
          :ok ->
            {:ok, open}

          {:full, bytes} ->
            waiting = "#{bytes} bytes are waiting to be read by it"
            Callbacks.drop(connection, functions)
            {:error, refuse(connection, row, "#{waiting} (max_queued_bytes: #{connection.max_queued_bytes})")}
        end
      end
    else
      :not_sent
    end
  end

  defp refuse(connection, row, why) do
    id = elem(row, 0)
    Connection.withdraw(connection, id)

    message =
      "the Python server takes no more requests for now: #{why}; nothing was sent. Ask again later, or give it a pool " <>
        "with more servers"

    Error.new(:overloaded, message, begun: false)
  end
end
