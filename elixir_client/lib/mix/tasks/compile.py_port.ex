defmodule Mix.Tasks.Compile.PyPort do
  @moduledoc """
  Builds the Python environments of `config :py_port, :uv_init` as part of `mix compile`.

      def project do
        [compilers: Mix.compilers() ++ [:py_port], ...]
      end

  uv runs only if the configuration, the lock, the port server or the machine has changed. A build that fails is a
  warning, and tried again next time; with `frozen: true` it is an error. `mix clean` removes what was built.
  See `PyPort.Env` for the options.
  """
  use Mix.Task.Compiler

  alias PyPort.Env

  @recursive true

  @impl true
  def run(_args) do
    # A library may list the compiler for its own tests; the environments are the application's, which builds them. A
    # project that Mix builds into a directory of another one's choice is a dependency.
    project = Mix.Project.config()
    dependency? = (project[:deps_app_path] || project[:app_path]) != nil
    results = for config <- if(dependency?, do: [], else: Env.configured()), do: build(config)
    status = Enum.find([:error, :ok], :noop, &List.keymember?(results, &1, 0))
    {status, Enum.flat_map(results, &elem(&1, 1))}
  rescue
    error in ArgumentError -> failed(:error, "config :py_port, :uv_init: " <> Exception.message(error))
  end

  @impl true
  def clean, do: File.rm_rf!(Env.base())

  defp build(config) do
    case Env.build(config) do
      {:ok, :unchanged} -> {:noop, []}
      {:ok, :built} -> {:ok, []}
      {:error, words} -> failed(if(config.frozen, do: :error, else: :ok), words)
    end
  end

  defp failed(status, words) do
    until = "\n\nUntil then PyPort answers with an error of the kind :unavailable."
    Mix.shell().error(if(status == :error, do: "\n" <> words, else: "\nwarning: " <> words <> until))
    severity = if status == :error, do: :error, else: :warning

    diagnostic = %Mix.Task.Compiler.Diagnostic{
      compiler_name: "py_port",
      file: Path.expand("mix.exs"),
      position: 0,
      severity: severity,
      message: words
    }

    {status, [diagnostic]}
  end
end
