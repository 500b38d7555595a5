defmodule Mix.Tasks.PyPort.Sync do
  @shortdoc "Builds the Python environments of this project"

  @moduledoc """
  Builds the Python environments of `config :py_port, :uv_init`, as `mix compile` does where the compiler `:py_port` is
  listed in mix.exs.

      mix py_port.sync [--force] [--offline] [--frozen] [NAME ...]

  Without names it builds all of them. `--force` builds what is up to date, too: after a package was changed by hand,
  or a compiler was installed. The other two are the options of the same name (`PyPort.Env`), for this once.
  """
  use Mix.Task

  alias PyPort.Env
  alias PyPort.Env.Config

  @switches [force: :boolean, offline: :boolean, frozen: :boolean]

  @impl true
  def run(args) do
    {switches, names} = OptionParser.parse!(args, strict: @switches)

    for config <- chosen!(names) do
      case Env.build(struct!(config, switches)) do
        {:ok, :built} -> :ok
        {:ok, :unchanged} -> Mix.shell().info("The Python environment #{inspect(config.name)} is up to date")
        {:error, words} -> Mix.raise(words)
      end
    end
  end

  @doc false
  # The environments with these names; all of them for none.
  @spec chosen!([String.t()]) :: [Config.t()]
  def chosen!(names) do
    Mix.Task.run("loadconfig")
    configs = Env.configured()

    if configs == [],
      do: Mix.raise("config :py_port, :uv_init is not set, so there is no Python environment; see PyPort.Env")

    case names -- Enum.map(configs, &to_string(&1.name)) do
      [] -> Enum.filter(configs, &(names == [] or to_string(&1.name) in names))
      [unknown | _rest] -> Mix.raise("there is no Python environment #{unknown} in config :py_port, :uv_init")
    end
  end
end
