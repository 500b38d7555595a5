# A service that embeds sentences: one model in memory for all Pythons of a pool, many sentences at a time, and a change of
# the model while callers go on. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/embeddings.exs
#
# The model is a fake that counts letters. A real one takes its place in `preload`.

level = Logger.level()
Logger.configure(level: :none)

preload = fn version ->
  """
  import sys, time, types

  class Model:
      # 2 ms for a batch, and 0.1 ms for each sentence.
      def encode(self, texts):
          time.sleep(0.002 + 0.0001 * len(texts))
          return [[#{version}, len(text), text.count("e")] for text in texts]

  model = Model()

  def encode(texts):
      return model.encode(texts)

  embed = types.ModuleType("embed")
  embed.encode = encode
  sys.modules["embed"] = embed
  """
end

# How many batches were sent, and how many sentences were in them: for applications that have the library :telemetry.
counts = :counters.new(2, [])

count = fn _event, %{size: size}, _metadata, _config ->
  :counters.add(counts, 1, 1)
  :counters.add(counts, 2, size)
end

if Code.ensure_loaded?(:telemetry) and function_exported?(:telemetry, :attach, 4),
  do: apply(:telemetry, :attach, ["embeddings", [:py_port, :batcher, :batch], count, nil])

{:ok, supervisor} =
  Supervisor.start_link(
    [
      Supervisor.child_spec({PyPort.Pool, name: ModelV1, size: 2, preload: preload.(1)}, id: ModelV1),
      {PyPort.Batcher, name: Embed, server: ModelV1, fun: "embed:encode", batch_size: 32, batch_timeout: 2}
    ],
    strategy: :one_for_one
  )

{:ok, vector} = PyPort.batched(Embed, "a sentence")
IO.puts("the first model: #{inspect(vector)}")

# Callers that never stop asking.
stop = :atomics.new(1, [])

callers =
  for n <- 1..16 do
    Task.async(fn ->
      Stream.repeatedly(fn -> PyPort.batched(Embed, "sentence #{n}") end)
      |> Stream.take_while(fn _outcome -> :atomics.get(stop, 1) == 0 end)
      |> Enum.to_list()
    end)
  end

# The next model starts beside the first, and has answered once before the batcher is moved.
new = Supervisor.child_spec({PyPort.Pool, name: ModelV2, size: 2, preload: preload.(2)}, id: ModelV2)
{:ok, _pool} = Supervisor.start_child(supervisor, new)
{:ok, _vector} = PyPort.call("embed:encode", [["ready?"]], %{}, server: ModelV2, timeout: 60_000)
:ok = PyPort.Batcher.switch(Embed, ModelV2)
:ok = Supervisor.terminate_child(supervisor, ModelV1)
{:ok, vector} = PyPort.batched(Embed, "a sentence")
IO.puts("the second model: #{inspect(vector)}")

:atomics.put(stop, 1, 1)
outcomes = callers |> Task.await_many() |> List.flatten()
lost = Enum.count(outcomes, &(not match?({:ok, _vector}, &1)))
IO.puts("#{length(outcomes)} sentences of 16 callers, #{lost} lost")

if :counters.get(counts, 1) > 0,
  do: IO.puts("#{Float.round(:counters.get(counts, 2) / :counters.get(counts, 1), 1)} sentences in a batch")

Supervisor.stop(supervisor)
Logger.configure(level: level)
