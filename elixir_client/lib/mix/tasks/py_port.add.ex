defmodule Mix.Tasks.PyPort.Add do
  @shortdoc "Adds packages to a Python environment of this project"

  @moduledoc """
  Adds packages to the project of an environment with `project:`: changes its pyproject.toml and its lock, and builds the
  environment.

      mix py_port.add numpy "pandas>=2.2"
      mix py_port.add --env ml torch

  For an environment with `pyproject_toml:`, whose text stands in the configuration, it prints the lines to add there. The environment is
  `:default`, or the only one, or the one that `--env` names. `mix py_port.remove` is the opposite.
  """
  use Mix.Task

  alias PyPort.Env
  alias PyPort.Env.{Config, Uv}

  @impl true
  def run(args), do: edit!("add", args)

  @doc false
  # Has uv change a project by one of its commands, `add` or `remove`.
  @spec edit!(String.t(), [String.t()]) :: :ok
  def edit!(command, args) do
    {env, packages} = Mix.Tasks.PyPort.Python.env(args)

    if packages == [], do: Mix.raise("#{command} needs the names of packages, as in mix py_port.add numpy")

    config = chosen!(env)
    if config.project, do: change!(command, config, packages), else: explain(command, config, packages)
  end

  defp chosen!(env) do
    configs = Mix.Tasks.PyPort.Sync.chosen!(if env, do: [to_string(env)], else: [])

    case {configs, Enum.find(configs, &(&1.name == :default))} do
      {[only], _default} -> only
      {_several, nil} -> Mix.raise("there are several Python environments: name one with --env")
      {_several, default} -> default
    end
  end

  defp change!(command, %Config{project: project} = config, packages) do
    args = [command, "--no-sync", "--project", project] ++ Config.index_args(config) ++ packages

    with {:ok, uv} <- Uv.find(config, &IO.write/1),
         {:ok, _said} <- Uv.run(uv, config, args, print: &IO.write/1),
         {:ok, _what} <- Env.build(config) do
      :ok
    else
      {:error, words} -> Mix.raise(words)
    end
  end

  defp explain(command, config, packages) do
    lines = Enum.map_join(packages, "\n", &~s(      "#{&1}",))
    {verb, where} = if command == "add", do: {"Add", "to"}, else: {"Remove", "from"}

    Mix.shell().info("""
    The project of #{inspect(config.name)} is text in the configuration (config :py_port, :uv_init). #{verb} this #{where} `dependencies` there:

    #{lines}

    Then run: mix py_port.lock && mix py_port.sync\
    """)
  end
end
