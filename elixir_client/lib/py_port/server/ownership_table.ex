defmodule PyPort.Server.OwnershipTable do
  # The holders of the objects and sessions of one Python. Pure: every function gives effects for PyPort.Server.Ownership to
  # carry out.
  #
  # A claim stands from the moment at which a reply with handles passes the server until its reader has named their owner: it
  # keeps the frame, so that the objects of a reader that dies in between are released.
  @moduledoc false

  # thing -> {holder, value}; holder -> its things; owner -> how many objects; and how many of one owner are many
  defstruct things: %{}, holders: %{}, owned: %{}, many: :infinity

  @type object_id :: pos_integer()
  # The value of a session is nil, of an object its heir, of a claim the frames in the order they came.
  @type thing :: {:object, object_id()} | {:session, String.t()} | {:claim, PyPort.Ownership.claim()}
  @type effect ::
          {:monitor, pid()}
          | {:demonitor, pid()}
          | {:release, [object_id()]}
          | {:release_in, frame :: binary()}
          | {:close_session, String.t()}
          # Of an owner of half of what are many objects, and more, or of one that was.
          | {:owns, pid(), non_neg_integer()}

  @type t :: %__MODULE__{
          things: %{optional(thing()) => {pid(), term()}},
          holders: %{optional(pid()) => %{optional(thing()) => true}},
          owned: %{optional(pid()) => pos_integer()},
          many: pos_integer() | :infinity
        }

  # A server with a small limit is not to warn of a handful.
  @least_many 10

  @spec new() :: t()
  def new, do: %__MODULE__{}

  # With the limits of a server: a tenth of what one process may own are many.
  @spec new(options :: map()) :: t()
  def new(%{max_objects: all, max_objects_per_owner: own}),
    do: %__MODULE__{many: all |> min(own) |> div(10) |> max(@least_many)}

  # A frame with handles is on its way to `reader`.
  @spec claim(t(), PyPort.Ownership.claim(), pid(), binary()) :: {t(), [effect()]}
  def claim(table, key, reader, frame) do
    frames =
      case table.things do
        %{{:claim, ^key} => {_reader, frames}} -> frames
        _none -> :queue.new()
      end

    put(table, {:claim, key}, reader, :queue.in(frame, frames))
  end

  # The oldest frame of a claim has been read: its objects belong to `owner`, and after it to `heir`.
  #
  # Without a claim its reader was taken for dead, and the objects are gone already.
  @spec take_over(t(), PyPort.Ownership.claim(), [object_id()], owner :: pid(), heir :: pid() | nil) ::
          {t(), [effect()]}
  def take_over(table, key, ids, owner, heir) do
    case pop_claim(table, key) do
      {:ok, _frame, table, effects} -> put_objects(table, ids, owner, heir, effects)
      :none -> {table, []}
    end
  end

  # The oldest frame of a claim is not going to be read.
  @spec disclaim(t(), PyPort.Ownership.claim()) :: {t(), [effect()]}
  def disclaim(table, key) do
    case pop_claim(table, key) do
      {:ok, frame, table, effects} -> {table, [{:release_in, frame} | effects]}
      :none -> {table, []}
    end
  end

  # Objects that Python has been told to release.
  @spec forget(t(), [object_id()]) :: {t(), [effect()]}
  def forget(table, ids) do
    Enum.reduce(ids, {table, []}, fn id, {table, effects} ->
      {_value, table, more} = take(table, {:object, id})
      {table, more ++ effects}
    end)
  end

  # Releases those objects that are still the holder's own.
  @spec release(t(), [object_id()], holder :: pid()) :: {t(), [effect()]}
  def release(table, ids, holder) do
    own = Enum.filter(ids, &match?(%{{:object, ^&1} => {^holder, _heir}}, table.things))
    {table, effects} = forget(table, own)
    {table, release_effect(own) ++ effects}
  end

  # Gives objects to another owner, or says which of them have none (any more).
  @spec transfer(t(), [object_id()], pid()) :: {:ok, t(), [effect()]} | {:error, [object_id()]}
  def transfer(table, ids, owner) do
    case Enum.reject(ids, &is_map_key(table.things, {:object, &1})) do
      [] ->
        {table, effects} = put_objects(table, ids, owner, nil, [])
        {:ok, table, effects}

      unknown ->
        {:error, unknown}
    end
  end

  @spec open_session(t(), String.t(), pid()) :: {t(), [effect()]}
  def open_session(table, name, opener), do: put(table, {:session, name}, opener, nil)

  @spec transfer_session(t(), String.t(), pid()) :: {t(), [effect()]} | {:error, :unknown}
  def transfer_session(table, name, owner) do
    if is_map_key(table.things, {:session, name}),
      do: open_session(table, name, owner),
      else: {:error, :unknown}
  end

  @spec close_session(t(), String.t()) :: {t(), [effect()]}
  def close_session(table, name) do
    {_value, table, effects} = take(table, {:session, name})
    {table, effects}
  end

  # A holder has ended: its objects go to their heirs, or are released; its sessions are closed.
  @spec ended(t(), pid()) :: {t(), [effect()]}
  def ended(table, holder) do
    {things, holders} = Map.pop(table.holders, holder, %{})
    {table, owned} = own(%{table | holders: holders}, holder, -owned(table, holder))

    {table, released, effects} =
      Enum.reduce(Map.keys(things), {table, [], []}, fn thing, {table, released, effects} ->
        {{^holder, value}, things} = Map.pop(table.things, thing)
        table = %{table | things: things}

        case {thing, value} do
          {{:object, id}, heir} when is_nil(heir) or heir == holder ->
            {table, [id | released], effects}

          {{:object, _id}, heir} ->
            {table, more} = put(table, thing, heir, nil)
            {table, released, more ++ effects}

          {{:session, name}, nil} ->
            {table, released, [{:close_session, name} | effects]}

          {{:claim, _key}, frames} ->
            {table, released, Enum.map(:queue.to_list(frames), &{:release_in, &1}) ++ effects}
        end
      end)

    {table, release_effect(released) ++ owned ++ effects}
  end

  # How many objects a process owns.
  @spec owned(t(), pid()) :: non_neg_integer()
  def owned(table, owner), do: Map.get(table.owned, owner, 0)

  # How many objects, sessions and claims there are.
  @spec count(t()) :: non_neg_integer()
  def count(table), do: map_size(table.things)

  defp release_effect([]), do: []
  defp release_effect(ids), do: [{:release, Enum.sort(ids)}]

  defp pop_claim(table, key) do
    with %{{:claim, ^key} => {reader, frames}} <- table.things,
         {{:value, frame}, frames} <- :queue.out(frames) do
      {table, effects} =
        if :queue.is_empty(frames) do
          {_value, table, effects} = take(table, {:claim, key})
          {table, effects}
        else
          put(table, {:claim, key}, reader, frames)
        end

      {:ok, frame, table, effects}
    else
      _none -> :none
    end
  end

  defp put_objects(table, ids, owner, heir, effects) do
    Enum.reduce(ids, {table, effects}, fn id, {table, effects} ->
      {table, more} = put(table, {:object, id}, owner, heir)
      {table, effects ++ more}
    end)
  end

  # A holder is monitored once, from its first thing to its last.
  defp put(table, thing, holder, value) do
    case table.things do
      %{^thing => {^holder, _old}} ->
        {put_in(table.things[thing], {holder, value}), []}

      _other_holder ->
        {_old, table, effects} = take(table, thing)
        monitor = if is_map_key(table.holders, holder), do: [], else: [{:monitor, holder}]
        things = table.holders |> Map.get(holder, %{}) |> Map.put(thing, true)

        {table, owned} =
          own(%{table | holders: Map.put(table.holders, holder, things)}, holder, objects(thing))

        {put_in(table.things[thing], {holder, value}), effects ++ monitor ++ owned}
    end
  end

  defp take(table, thing) do
    case Map.pop(table.things, thing) do
      {nil, _things} ->
        {nil, table, []}

      {{holder, value}, things} ->
        left = table.holders |> Map.fetch!(holder) |> Map.delete(thing)
        {table, owned} = own(%{table | things: things}, holder, -objects(thing))

        if left == %{} do
          {value, %{table | holders: Map.delete(table.holders, holder)}, [{:demonitor, holder} | owned]}
        else
          {value, %{table | holders: Map.put(table.holders, holder, left)}, owned}
        end
    end
  end

  defp objects({:object, _id}), do: 1
  defp objects(_thing), do: 0

  defp own(table, _owner, 0), do: {table, []}

  defp own(%{many: many} = table, owner, more) do
    before = owned(table, owner)
    now = before + more
    owned = if now == 0, do: Map.delete(table.owned, owner), else: Map.put(table.owned, owner, now)
    effects = if is_integer(many) and max(before, now) >= div(many, 2), do: [{:owns, owner, now}], else: []
    {%{table | owned: owned}, effects}
  end
end
