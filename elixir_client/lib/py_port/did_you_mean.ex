defmodule PyPort.DidYouMean do
  # What somebody may have meant who wrote a name that there is not.
  @moduledoc false

  # Names that look alike to a person, and few enough wrong guesses to be worth reading.
  @similar 0.8

  # A list that is read, not searched.
  @names_shown 10

  @doc "A question after the most similar of the known names, with a space before it; nothing if none is similar."
  @spec similar(term(), [atom()]) :: String.t()
  def similar(_name, []), do: ""

  def similar(name, known) do
    text = text(name)
    best = Enum.max_by(known, &String.jaro_distance(text(&1), text))
    if String.jaro_distance(text(best), text) > @similar, do: " Did you mean #{inspect(best)}?", else: ""
  end

  # As it is written: the prefix that all names of modules share is no likeness.
  defp text(name) when is_atom(name), do: name |> inspect() |> String.trim_leading(":")
  defp text(name), do: inspect(name)

  @doc "Which servers and pools run, for somebody who has named another one."
  @spec running(term()) :: String.t()
  def running(name) do
    case PyPort.Registry.named() |> Enum.map(&elem(&1, 0)) |> Enum.sort_by(&inspect/1) do
      [] ->
        "None is running under any name"

      known ->
        {shown, others} = Enum.split(known, @names_shown)
        more = if others == [], do: "", else: " and #{length(others)} more"

        String.trim_leading(similar(name, known) <> " Running: ") <>
          Enum.map_join(shown, ", ", &inspect/1) <> more
    end
  end
end
