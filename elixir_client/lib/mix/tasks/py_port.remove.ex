defmodule Mix.Tasks.PyPort.Remove do
  @shortdoc "Removes packages from a Python environment of this project"

  @moduledoc """
  Removes packages from the project of an environment: the opposite of `mix py_port.add`.

      mix py_port.remove numpy
      mix py_port.remove --env ml torch
  """
  use Mix.Task

  @impl true
  def run(args), do: Mix.Tasks.PyPort.Add.edit!("remove", args)
end
