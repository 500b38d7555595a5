defmodule PyPort.Server.AsyncDelivery do
  # Delivers messages of a Python that are no part of a reply: log records, messages to processes, output of requests that
  # are over. One process per server takes them, in order, since these carry terms of any size, which the owner of the port
  # must not build, and since Logger may make its callers wait.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Error, Wire}

  # How much may be unread. Code that logs or sends more waits until some of it has been passed on, so that the mailbox does
  # not grow.
  @window_bytes 1_048_576
  # Acknowledged in quarters, so that a single record costs no frame.
  @ack_bytes div(@window_bytes, 4)
  # Means all there is, see docs/protocol.md.
  @everything 0x7FFFFFFF

  @levels [:debug, :info, :warning, :error, :critical]

  @type message ::
          {:log, binary(), caller :: pid() | nil} | {:send, binary()} | {:output, Wire.id(), binary()}

  # Starts it, linked to the calling server, for which `who` is the name.
  @spec start_link(Connection.t(), who :: String.t(), log? :: boolean()) :: pid()
  def start_link(connection, who, log?) do
    server = self()

    spawn_link(fn ->
      Process.monitor(server)
      loop(%{connection: connection, who: who, log?: log?, unacknowledged: 0})
    end)
  end

  @spec window_bytes() :: pos_integer()
  def window_bytes, do: @window_bytes

  # Tells Python that all of it has been passed on, or is lost with the process that ended.
  @spec acknowledge_all(Connection.t()) :: :ok
  def acknowledge_all(connection), do: Connection.command(connection, Wire.ack("", @everything))

  @spec post(pid(), message()) :: :ok
  def post(delivery, message) do
    send(delivery, message)
    :ok
  end

  defp loop(state) do
    receive do
      {:log, frame, caller} ->
        record(frame, caller, state)
        state |> passed_on(frame) |> loop()

      {:send, frame} ->
        deliver(state, frame)
        state |> passed_on(frame) |> loop()

      {:output, id, frame} ->
        output(state, id, frame)
        loop(state)

      {:DOWN, _monitor, :process, _server, _reason} ->
        :ok
    end
  end

  defp passed_on(state, frame) do
    case state.unacknowledged + byte_size(frame) do
      bytes when bytes >= @ack_bytes ->
        Connection.command(state.connection, Wire.ack("", bytes))
        %{state | unacknowledged: 0}

      bytes ->
        %{state | unacknowledged: bytes}
    end
  end

  defp record(frame, caller, state) do
    case Wire.decode(frame) do
      {:ok, {:log, level, message, %{} = metadata}} when level in @levels and is_binary(message) ->
        Logger.log(level, message |> text() |> Error.fold(), caller_metadata(caller) ++ metadata(metadata))

      {:error, why} ->
        Logger.warning("PyPort #{state.who}: a log record cannot be read: #{why}")

      _other ->
        Logger.warning("PyPort #{state.who}: a log record of an unknown shape")
    end
  end

  defp text(message), do: if(String.valid?(message), do: message, else: inspect(message))

  # Keys of Logger and its handlers, which are of a certain form.
  @reserved ~w(application callers crash_reason domain error_logger extra file function gl initial_call line logger
    mfa module pid registered_name report_cb request time)

  # A field that came with the record has its atom as its key, where the atom exists, as it does for every key that the
  # configuration of Logger names. The others stay text, under `extra`, since atoms are never collected.
  defp metadata(metadata) do
    {known, extra} = Enum.split_with(metadata, fn {name, _value} -> is_atom(name) end)
    {named, rest} = Enum.split_with(extra, fn {name, _value} -> is_atom(key(name)) end)
    known = Enum.map(named, fn {name, value} -> {key(name), value} end) ++ Enum.map(known, &elixir_form/1)
    if rest == [], do: known, else: [{:extra, Map.new(rest)} | known]
  end

  defp key(name) when name in @reserved, do: name

  defp key(name) do
    String.to_existing_atom(name)
  rescue
    ArgumentError -> name
  end

  # In the form of Elixir's own records: a file is a charlist. The id of a request is a counter.
  defp elixir_form({:file, file}) when is_binary(file), do: {:file, String.to_charlist(file)}
  defp elixir_form({:request, <<number::64>>}), do: {:request, number}
  defp elixir_form(other), do: other

  # The caller waits for its answer, so its metadata is what it was when it asked.
  defp caller_metadata(nil), do: []

  defp caller_metadata(caller) do
    with true <- node(caller) == node(),
         {:dictionary, dictionary} <- Process.info(caller, :dictionary),
         {_key, %{} = metadata} <- List.keyfind(dictionary, :"$logger_metadata$", 0) do
      Map.to_list(metadata)
    else
      _none -> []
    end
  end

  defp deliver(state, frame) do
    case Wire.decode(frame) do
      {:ok, {:send, to, term}} when is_pid(to) ->
        send(to, term)

      {:ok, {:send, to, _term}} ->
        Logger.warning("PyPort #{state.who}: port_server.send needs a pid, got: #{inspect(to)}")

      {:error, why} ->
        Logger.warning("PyPort #{state.who}: a message of port_server.send was not delivered: #{why}")

      {:ok, _other} ->
        Logger.warning("PyPort #{state.who}: a message of port_server.send of an unknown shape")
    end
  end

  # Output of a request that no process waits for any more.
  defp output(state, id, frame) do
    with {:ok, {:output, _id, _stream, text}} when is_binary(text) <- Wire.decode(frame) do
      if state.log?,
        do: Logger.info("PyPort #{state.who} output: #{text |> text() |> String.trim_trailing()}")

      Connection.command(state.connection, Wire.ack(id, byte_size(text)))
    end
  end
end
