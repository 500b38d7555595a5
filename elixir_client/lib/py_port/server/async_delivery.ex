defmodule PyPort.Server.AsyncDelivery do
  # Delivers messages of a Python that are no part of a reply: log records, messages to processes, output of requests that
  # are over. One process per server takes them, in order, since these carry terms of any size, which the owner of the port
  # must not build, and since Logger may make its callers wait.
  @moduledoc false

  require Logger

  alias PyPort.{Callbacks, Connection, Error, Libraries, Ownership, Wire}

  # How much may be unread. Code that logs or sends more waits until some of it has been passed on, so that the mailbox does
  # not grow.
  @window_bytes 1_048_576
  # Acknowledged in quarters, so that a single record costs no frame.
  @ack_bytes div(@window_bytes, 4)
  # Means all there is, see docs/protocol.md.
  @everything 0x7FFFFFFF

  @levels [:debug, :info, :warning, :error, :critical]

  @type message ::
          {:log, binary(), caller :: pid() | nil}
          | {:send, binary(), Ownership.claim() | nil}
          | {:output, Wire.id(), binary()}

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

      {:send, frame, claim} ->
        deliver(state, frame, claim)
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

  defp key(name), do: existing_atom(name) || name

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

  defp deliver(state, frame, claim) do
    with {:ok, to, term, ids} <- message(Wire.decode(frame)),
         {:ok, to} <- destination(to),
         {:ok, term} <- restored(state, term, ids),
         :ok <- take_over(state, claim, ids, to) do
      send(to, term)
    else
      {:error, why} ->
        if claim, do: Ownership.disclaim(state.connection.owner, claim)

        Logger.warning(
          "PyPort #{state.who}: a message of port_server.send was not delivered: #{text_of(why)}"
        )
    end
  end

  defp text_of(%Error{message: message}), do: message
  defp text_of(text), do: text

  defp message({:ok, {:send, to, term}}), do: {:ok, to, term, []}
  defp message({:ok, {:send, to, term, ids}}) when is_list(ids), do: {:ok, to, term, ids}
  defp message({:ok, _other}), do: {:error, "it has an unknown shape"}
  defp message({:error, why}), do: {:error, why}

  # Names are text.
  defp destination(pid) when is_pid(pid), do: {:ok, pid}

  defp destination(name) when is_binary(name) do
    case name |> existing_atom() |> Process.whereis() do
      nil -> {:error, "no process of this node has the name #{name}"}
      pid when is_pid(pid) -> {:ok, pid}
      port -> {:error, "the name #{name} belongs to a port, #{inspect(port)}"}
    end
  end

  defp destination({name, node}) when is_binary(name) and is_binary(node) do
    case {existing_atom(name), existing_atom(node)} do
      {_name, here} when here == node() -> destination(name)
      {name, node} when name != nil and node != nil -> {:ok, {name, node}}
      _unknown -> {:error, "this node does not know the name #{name} or the node #{node}"}
    end
  end

  defp destination(other), do: {:error, "#{inspect(other)} is no pid, no name and no {name, node}"}

  # nil, which is the name of no process, where there is none.
  defp existing_atom(name) do
    String.to_existing_atom(name)
  rescue
    ArgumentError -> nil
  end

  defp restored(_state, term, []), do: {:ok, term}

  defp restored(%{connection: connection}, term, ids) do
    with {:ok, term} <- Libraries.load(term, ids), do: Callbacks.restore(connection.owner, term, ids)
  end

  defp take_over(_state, nil, _ids, _to), do: :ok

  defp take_over(%{connection: connection}, claim, ids, to) when is_pid(to),
    do: Ownership.take_over(connection.owner, claim, ids, to)

  defp take_over(_state, _claim, _ids, to),
    do: {:error, "it holds objects, which need an owner: send them to a pid, not to #{inspect(to)}"}

  # Output of a request that no process waits for any more.
  defp output(state, id, frame) do
    with {:ok, {:output, _id, _stream, text}} when is_binary(text) <- Wire.decode(frame) do
      if state.log?,
        do: Logger.info("PyPort #{state.who} output: #{text |> text() |> String.trim_trailing()}")

      Connection.command(state.connection, Wire.ack(id, byte_size(text)))
    end
  end
end
