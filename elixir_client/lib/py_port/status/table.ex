defmodule PyPort.Status.Table do
  # Statuses as text for people. Pure.
  @moduledoc false

  @heads ~w(SERVER STATE REQUEST SINCE OPEN QUEUE DONE RSS RESTARTS)
  # Words to the left, numbers to the right.
  @left 2

  @spec text([PyPort.Status.t()] | [{GenServer.name() | pid(), [PyPort.Status.t()]}]) :: String.t()
  def text(statuses) do
    rows = [@heads | Enum.flat_map(statuses, &rows/1)]

    widths =
      rows
      |> Enum.zip_with(& &1)
      |> Enum.map(fn column -> column |> Enum.map(&String.length/1) |> Enum.max() end)

    Enum.map_join(rows, "\n", &line(&1, widths))
  end

  defp rows({name, [status]}), do: [row(inspect(name), status)]

  defp rows({name, statuses}) do
    for {status, index} <- Enum.with_index(statuses, 1), do: row("#{inspect(name)}[#{index}]", status)
  end

  defp rows(%{server: server} = status), do: [row(inspect(server), status)]

  defp row(server, status) do
    [
      server,
      state(status),
      if(status.running, do: "#{status.running}", else: "-"),
      if(status.running, do: duration(status.running_ms || 0), else: "-"),
      "#{status.pending}",
      "#{status.queue}",
      "#{status.requests}",
      if(status.rss_bytes, do: bytes(status.rss_bytes), else: "-"),
      "#{status.restarts}"
    ]
  end

  defp line(cells, widths) do
    cells
    |> Enum.zip(widths)
    |> Enum.with_index(fn {cell, width}, column ->
      if column < @left, do: String.pad_trailing(cell, width), else: String.pad_leading(cell, width)
    end)
    |> Enum.join("  ")
    |> String.trim_trailing()
  end

  @spec state(PyPort.Status.t()) :: String.t()
  def state(%{state: state, draining: nil}), do: "#{state}"
  def state(%{state: state, draining: why}), do: "#{state} (draining: #{why})"

  # Milliseconds in the unit in which a person would say it.
  @spec duration(non_neg_integer()) :: String.t()
  def duration(ms) when ms < 1_000, do: "#{ms} ms"
  def duration(ms) when ms < 60_000, do: "#{decimal(ms / 1_000)} s"
  def duration(ms) when ms < 3_600_000, do: "#{decimal(ms / 60_000)} min"
  def duration(ms), do: "#{decimal(ms / 3_600_000)} h"

  # A number of bytes, likewise.
  @spec bytes(non_neg_integer()) :: String.t()
  def bytes(bytes) when bytes < 1_048_576, do: "#{decimal(bytes / 1_024)} KiB"
  def bytes(bytes) when bytes < 1_073_741_824, do: "#{decimal(bytes / 1_048_576)} MiB"
  def bytes(bytes), do: "#{decimal(bytes / 1_073_741_824)} GiB"

  defp decimal(number), do: :erlang.float_to_binary(number, decimals: 1)
end
