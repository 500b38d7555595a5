defmodule PyPort.Env.Command do
  # Runs a Python of an environment as a program of a terminal: it has the stdin, stdout and stderr of this VM.
  @moduledoc false

  alias PyPort.Env

  # Runs it, and gives its exit status. `name` is nil for the environment of the default pool.
  @spec run(atom() | nil, [String.t()], path :: [Path.t()]) :: {:ok, non_neg_integer()} | {:error, String.t()}
  def run(name, arguments, path) do
    with {:ok, python, variables} <- python(name) do
      given = List.keyfind(variables, "PYTHONPATH", 0, {nil, System.get_env("PYTHONPATH")}) |> elem(1)
      path = Enum.join(path ++ List.wrap(given), ":")
      variables = List.keystore(variables, "PYTHONPATH", 0, {"PYTHONPATH", if(path != "", do: path)})

      env =
        for {name, value} <- variables,
            do: {to_charlist(name), if(value, do: to_charlist(value), else: false)}

      # Not as the owner of the port's pipes: the program has those of the terminal.
      port = Port.open({:spawn_executable, python}, [:nouse_stdio, :exit_status, args: arguments, env: env])

      receive do
        {^port, {:exit_status, status}} -> {:ok, status}
      end
    end
  end

  defp python(name) do
    case Env.put_default(python_env: name) do
      [python_env: nil] ->
        python = System.get_env("PYPORT_PYTHON") || "python3"

        case System.find_executable(python) do
          nil -> {:error, "there is no Python #{python}"}
          path -> {:ok, path, []}
        end

      [python_env: name] ->
        with {:ok, python} <- Env.interpreter(name), do: {:ok, python, Env.variables(name)}
    end
  end
end
