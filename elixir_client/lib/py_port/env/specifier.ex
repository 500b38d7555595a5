defmodule PyPort.Env.Specifier do
  # Whether a Python version satisfies a `requires-python`, by the rules of the Python Packaging User Guide's
  # "Version specifiers" (PEP 440). Pure. Only what versions of Python itself need: no epochs, no local versions.
  @moduledoc false

  @doc """
  Whether `version` (`"3.12.4"`) satisfies every clause of `specifier` (`">=3.11,<3.14"`).

  A clause that cannot be read rules nothing out: uv has read it before us and would have refused it.
  """
  @spec satisfied?(String.t(), String.t()) :: boolean()
  def satisfied?(version, specifier) do
    case parse(version) do
      {:ok, version} -> specifier |> String.split(",", trim: true) |> Enum.all?(&clause?(version, &1))
      :error -> true
    end
  end

  defp clause?(version, clause) do
    pattern = ~r/^\s*(===|~=|==|!=|<=|>=|<|>)\s*v?(\d+(?:\.\d+)*)(\.\*)?([a-z]+\d*)?\s*$/

    case Regex.run(pattern, clause) do
      [_, operator, release | rest] ->
        wanted = {numbers(release), Enum.at(rest, 1, "")}
        holds?(operator, version, wanted, Enum.at(rest, 0, "") == ".*")

      nil ->
        true
    end
  end

  defp holds?("==", version, wanted, true), do: prefix?(version, wanted)
  defp holds?("!=", version, wanted, true), do: not prefix?(version, wanted)
  defp holds?("==", version, wanted, _exact), do: compare(version, wanted) == :eq
  defp holds?("===", version, wanted, _exact), do: compare(version, wanted) == :eq
  defp holds?("!=", version, wanted, _exact), do: compare(version, wanted) != :eq
  defp holds?(">=", version, wanted, _exact), do: compare(version, wanted) != :lt
  defp holds?("<=", version, wanted, _exact), do: compare(version, wanted) != :gt
  defp holds?(">", version, wanted, _exact), do: compare(version, wanted) == :gt

  defp holds?("<", version, wanted, _exact),
    do: compare(version, wanted) == :lt and not early?(version, wanted)

  # ~=3.11.2 means >=3.11.2, ==3.11.*
  defp holds?("~=", version, {release, _pre} = wanted, _exact) do
    compare(version, wanted) != :lt and prefix?(version, {Enum.drop(release, -1), ""})
  end

  # 3.13.0rc1 is older than 3.13, yet <3.13 does not mean it.
  defp early?({release, pre}, {wanted, ""}) when pre != "", do: pad(release, wanted) == pad(wanted, release)
  defp early?(_version, _wanted), do: false

  defp prefix?({release, _pre}, {wanted, _any}) do
    release |> pad(wanted) |> Enum.take(length(wanted)) == wanted
  end

  defp compare({left, left_pre}, {right, right_pre}) do
    a = {pad(left, right), stage(left_pre)}
    b = {pad(right, left), stage(right_pre)}

    cond do
      a < b -> :lt
      a > b -> :gt
      true -> :eq
    end
  end

  # Before the release itself come its alphas, betas and candidates, which the alphabet orders.
  defp stage(""), do: {1, "", 0}

  defp stage(pre) do
    [_, letters, number] = Regex.run(~r/^([a-z]+)(\d*)$/, pre)
    {0, letters, if(number == "", do: 0, else: String.to_integer(number))}
  end

  defp parse(version) do
    case Regex.run(~r/^v?(\d+(?:\.\d+)*)([a-z]+\d*)?/, version) do
      [_, release] -> {:ok, {numbers(release), ""}}
      [_, release, pre] -> {:ok, {numbers(release), pre}}
      nil -> :error
    end
  end

  defp numbers(release), do: release |> String.split(".") |> Enum.map(&String.to_integer/1)

  defp pad(release, other), do: release ++ List.duplicate(0, max(length(other) - length(release), 0))
end
