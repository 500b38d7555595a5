defmodule PyPort.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :py_port,
      version: @version,
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      elixirc_paths: elixirc_paths(Mix.env()),
      test_paths: test_paths(),
      # No dependency, ever required: optional integrations look for their library at run time.
      deps: [],
      description: "Python for Elixir and Erlang, in an operating-system process of its own.",
      package: package()
    ]
  end

  def application do
    [mod: {PyPort.Application, []}, extra_applications: [:logger]]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # The faults stand with those that pytest tries. Elixir 1.14 cannot even parse a multi-letter sigil such as ~PY, so what
  # uses it has a folder of its own.
  defp test_paths do
    modern = if Version.match?(System.version(), ">= 1.15.0"), do: ["test_1_15"], else: []
    ["test", "../tests/faults"] ++ modern
  end

  defp package do
    [licenses: ["Apache-2.0"], files: ~w(lib priv mix.exs .formatter.exs examples), links: %{}]
  end
end
