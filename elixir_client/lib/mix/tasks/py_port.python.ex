defmodule Mix.Tasks.PyPort.Python do
  @shortdoc "Runs Python in an environment of this project"

  @moduledoc """
  Runs the Python of an environment with any arguments, in this terminal.

      mix py_port.python -- -m pip list
      mix py_port.python --env ml -- -c "import torch; print(torch.__version__)"
      mix py_port.python

  The environment is that of the default pool, or the one that `--env` names; without environments it is `PYPORT_PYTHON`, or the
  `python3` of the PATH. `priv/python` of this project is on `sys.path`. The task ends with the exit status of Python.
  """
  use Mix.Task

  alias PyPort.Env
  alias PyPort.Env.Command

  @impl true
  def run(args) do
    {env, args} = env(args)
    run!(env, if(match?(["--" | _], args), do: tl(args), else: args))
  end

  @doc false
  # The option `--env` at the begin of the arguments, and the other arguments.
  @spec env([String.t()]) :: {atom() | nil, [String.t()]}
  def env(["--env", name | rest]), do: {String.to_atom(name), rest}
  def env(["--env=" <> name | rest]), do: {String.to_atom(name), rest}
  def env(args), do: {nil, args}

  @doc false
  # Runs it, and ends the task with its status if that is not 0.
  @spec run!(atom() | nil, [String.t()]) :: :ok
  def run!(env, args) do
    Mix.Task.run("loadconfig")
    build!(env)

    case Command.run(env, args, Enum.filter([Path.expand("priv/python")], &File.dir?/1)) do
      {:ok, 0} -> :ok
      {:ok, status} -> exit({:shutdown, status})
      {:error, words} -> Mix.raise(words)
    end
  end

  # As a server would.
  defp build!(env) do
    for config <- Env.configured(), env == nil or config.name == env do
      with {:error, words} <- Env.build(config), do: Mix.raise(words)
    end
  end
end
