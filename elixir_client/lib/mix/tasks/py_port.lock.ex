defmodule Mix.Tasks.PyPort.Lock do
  @shortdoc "Resolves the Python packages of this project anew"

  @moduledoc """
  Has uv resolve the Python projects of `config :py_port, :uv_init` and writes `uv.lock`, to be committed. Needed after
  the project has changed: a lock that does not match it is an error, because a build should never quietly run on
  other versions than the ones that were tested.

      mix py_port.lock [--upgrade] [--offline] [NAME ...]

  Versions that still fit stay; `--upgrade` takes the newest that do. The next `mix compile` builds what is locked.
  """
  use Mix.Task

  alias PyPort.Env
  alias PyPort.Env.Build

  @impl true
  def run(args) do
    {switches, names} = OptionParser.parse!(args, strict: [upgrade: :boolean, offline: :boolean])

    for config <- Mix.Tasks.PyPort.Sync.chosen!(names) do
      config = struct!(config, Keyword.take(switches, [:offline]))

      case Build.lock(config, Env.base(), switches, &IO.write/1) do
        {:ok, path} -> Mix.shell().info("Wrote #{Path.relative_to_cwd(path)}")
        {:error, words} -> Mix.raise(words)
      end
    end
  end
end
