defmodule Mix.Tasks.PyPort.Run do
  @shortdoc "Runs a Python script in an environment of this project"

  @moduledoc """
  Runs a Python file with its arguments, in this terminal.

      mix py_port.run scripts/train.py --epochs 3
      mix py_port.run --env ml scripts/train.py

  It is `mix py_port.python` for a script: the same environment, `sys.path` and exit status.
  """
  use Mix.Task

  alias Mix.Tasks.PyPort.Python

  @impl true
  def run(args) do
    case Python.env(args) do
      {_env, []} ->
        Mix.raise("mix py_port.run needs the path of a Python file: mix py_port.run script.py arguments")

      {env, [script | _arguments] = args} ->
        if File.regular?(script), do: Python.run!(env, args), else: missing!(script)
    end
  end

  @spec missing!(Path.t()) :: no_return()
  defp missing!(script),
    do:
      Mix.raise(
        "the Python file #{script} does not exist (#{Path.expand(script)}). A module is run by mix py_port.python -- -m"
      )
end
