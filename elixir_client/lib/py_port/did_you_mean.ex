defmodule PyPort.DidYouMean do
  # The name that an unknown name is most similar to, for error messages.
  @moduledoc false

  # Names that look alike to a person, and few enough wrong guesses to be worth reading.
  @similar 0.8

  # A question after the most similar of the known names, with a space before it; "" if none is similar.
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
end
