defmodule Mix.Tasks.PyPort.Test do
  @shortdoc "Runs pytest in an environment of this project"

  @moduledoc """
  Runs pytest with any arguments, in this terminal.

      mix py_port.test
      mix py_port.test --env ml priv/python/tests -k mean

  The environment has to have pytest among its packages (`mix py_port.add pytest`). The rest is as with `mix py_port.python`.
  """
  use Mix.Task

  alias Mix.Tasks.PyPort.Python

  @check """
  import importlib.util, sys
  if importlib.util.find_spec("pytest") is None:
      sys.exit(f"pytest is not in the environment of {sys.executable}: add it with mix py_port.add pytest")
  import pytest
  sys.exit(pytest.console_main())
  """

  @impl true
  def run(args) do
    {env, args} = Python.env(args)
    Python.run!(env, ["-c", @check | args])
  end
end
