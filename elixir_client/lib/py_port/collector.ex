defmodule PyPort.Collector do
  # Has the garbage collector release objects: a handle gets a reference, and when no process of this node has that reference any
  # more, the server of the object gets {:collected, id, owner}. By a NIF of a few lines (c_src/collector.c), which is compiled with
  # this library where there is a C compiler. Without it objects live as long as their owners.
  @moduledoc false

  alias PyPort.Object

  @on_load :load

  @doc false
  def load do
    # Without the file nothing is collected.
    with dir when is_list(dir) <- :code.priv_dir(:py_port),
         do: :erlang.load_nif(~c"#{dir}/native/#{name()}", 0)

    :ok
  end

  # Of the file, without its ending. An older BEAM cannot load what was compiled for a newer one.
  @spec name() :: String.t()
  def name, do: "collector-#{:erlang.system_info(:otp_release)}-#{:erlang.system_info(:system_architecture)}"

  @spec loaded?() :: boolean()
  def loaded?, do: false

  # The value with a reference in each handle, for objects that belong to a process of this node.
  @spec watched(value, owner :: pid()) :: value when value: term()
  def watched(value, owner), do: if(node(owner) == node() and loaded?(), do: put(value, owner), else: value)

  defp put(%Object{id: id, server: server} = object, owner) when is_pid(server),
    do: Map.put(object, :ref, watch(Object.server(object), owner, id))

  defp put([head | tail], owner), do: [put(head, owner) | put(tail, owner)]
  defp put(map, owner) when is_map(map), do: :maps.map(fn _key, value -> put(value, owner) end, map)

  defp put(tuple, owner) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> put(owner) |> List.to_tuple()

  defp put(value, _owner), do: value

  defp watch(_server, _owner, _id), do: nil
end
