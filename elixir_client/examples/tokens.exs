# Tokens from an asynchronous generator, printed as they come. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/tokens.exs
#
# The generator stands where a client of a language model would: it waits for each token, and while it waits Python serves
# other callers.

import PyPort.Sigils

model = ~P"""
import asyncio
import re

async def complete(prompt):
    answer = f"You asked: {prompt} The answer is forty-two, and it comes word by word."
    for token in re.findall(r"\s*\S+", answer):
        await asyncio.sleep(0.03)
        yield token

async for token in complete(prompt):
    yield token
"""

print = fn prompt -> model |> PyPort.stream(%{prompt: prompt}) |> Stream.each(&IO.write/1) |> Enum.count() end

count = print.("What is six times seven?")
IO.puts("\n#{count} tokens")

# A reader that has enough stops to read: the generator is closed in Python.
model |> PyPort.stream(%{prompt: "And in short?"}) |> Stream.take(5) |> Enum.each(&IO.write/1)
IO.puts(" ...")

# Ten conversations at once take as long as one: the event loop waits for all of them.
{micros, lengths} =
  :timer.tc(fn ->
    1..10
    |> Enum.map(&Task.async(fn -> model |> PyPort.stream(%{prompt: "Number #{&1}?"}) |> Enum.count() end))
    |> Task.await_many(30_000)
  end)

IO.puts("#{length(lengths)} more at once, #{Enum.sum(lengths)} tokens in #{div(micros, 1000)} ms")
