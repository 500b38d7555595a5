defmodule PyPort.Pool.Default do
  # The options of the pool PyPort.Default: the one place that reads the application's configuration for it.
  @moduledoc false

  # One server: objects that two requests made can then always meet in a third, modules have one state, and an application
  # that evaluates a line now and then does not pay for a Python on each core.
  @size 1

  # The options of the default pool, or nil where it is switched off.
  @spec options(keyword() | false) :: keyword() | nil
  def options(configured \\ Application.get_env(:py_port, :pool, [])) do
    case configured do
      false -> nil
      configured -> configured |> with_defaults() |> Keyword.put(:name, PyPort.Default)
    end
  end

  defp with_defaults(configured), do: [size: @size] |> Keyword.merge(configured) |> PyPort.Env.put_default()
end
