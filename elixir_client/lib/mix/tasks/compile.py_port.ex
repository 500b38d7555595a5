defmodule Mix.Tasks.Compile.PyPort do
  @moduledoc """
  Builds the Python environments of `config :py_port, :uv_init` as part of `mix compile`.

      def project do
        [compilers: Mix.compilers() ++ [:py_port], ...]
      end

  uv runs only if the configuration, the lock, the port server or the machine has changed since. A build that fails is a
  warning, and tried again next time; with `frozen: true` it is an error. `mix clean` removes what was built.
  See `PyPort.Env` for the options.
  """
  use Mix.Task.Compiler

  alias PyPort.Env

  @recursive true

  @impl true
  def run(_args) do
    # A library may have the compiler for its own tests; what is configured is the application's, which builds it.
    if dependency?(Mix.Project.config()),
      do: {:noop, []},
      else: Env.configured() |> Enum.map(&build/1) |> sum()
  rescue
    error in ArgumentError ->
      words = "config :py_port, :uv_init: " <> Exception.message(error)
      Mix.shell().error(words)
      {:error, [diagnostic(:error, words)]}
  end

  @impl true
  def clean, do: File.rm_rf!(Env.base())

  # Where Mix has said to a project where it is to be built, it is somebody's dependency.
  defp dependency?(project), do: (project[:deps_app_path] || project[:app_path]) != nil

  defp build(config) do
    case Env.build(config) do
      {:ok, :unchanged} ->
        {:noop, []}

      {:ok, :built} ->
        {:ok, []}

      {:error, words} when config.frozen ->
        Mix.shell().error("\n" <> words)
        {:error, [diagnostic(:error, words)]}

      {:error, words} ->
        Mix.shell().error(
          "\nwarning: " <> words <> "\n\nUntil then PyPort answers with an error of the kind :unavailable."
        )

        {:ok, [diagnostic(:warning, words)]}
    end
  end

  defp sum(results) do
    statuses = for {status, _diagnostics} <- results, do: status
    status = Enum.find([:error, :ok], :noop, &(&1 in statuses))
    {status, Enum.flat_map(results, &elem(&1, 1))}
  end

  defp diagnostic(severity, message) do
    %Mix.Task.Compiler.Diagnostic{
      compiler_name: "py_port",
      file: Path.expand("mix.exs"),
      position: 0,
      severity: severity,
      message: message
    }
  end
end
