defmodule PyPort.MixProject do
  use Mix.Project

  @version "0.1.0"

  # Name => address, for Hex. Documentation links to code if there is one with the name "Source".
  @links %{}

  # The pages of the documentation beside those of the modules; README and changelog stand first and last.
  @pages [
    "Using PyPort":
      ~w(docs/guide.md docs/types.md docs/environments.md docs/erlang.md docs/command-line.md notebooks/intro.livemd),
    "In production": ~w(docs/deployment.md docs/reliability.md docs/performance.md docs/platforms.md),
    "From other libraries": ~w(docs/migrating-from-pythonx.md docs/migrating-from-erlport.md),
    "Inside PyPort": ~w(docs/protocol.md docs/etf.md docs/contributing.md)
  ]

  def project do
    [
      app: :py_port,
      version: @version,
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      elixirc_paths: elixirc_paths(Mix.env()),
      compilers: Mix.compilers() ++ [:py_port_collector],
      test_paths: test_paths(),
      deps: deps(Mix.env()),
      description: "Python for Elixir and Erlang, in an operating-system process of its own.",
      name: "PyPort",
      source_url: @links["Source"],
      docs: docs(),
      package: package()
    ]
  end

  def application do
    [mod: {PyPort.Application, []}, extra_applications: [:logger]]
  end

  # No dependency, ever required: optional integrations look for their library at run time. In an environment of its own,
  # ExDoc does not have to be fetched for anything else.
  defp deps(:docs), do: [{:ex_doc, "~> 0.34", only: :docs, runtime: false}]
  defp deps(_env), do: []

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # The faults stand with those that pytest tries. Elixir 1.14 cannot even parse a multi-letter sigil such as ~PY, so what
  # uses it has a folder of its own.
  defp test_paths do
    modern = if Version.match?(System.version(), ">= 1.15.0"), do: ["test_1_15"], else: []
    ["test", "../tests/faults"] ++ modern
  end

  # The paths are links here; `make package` puts files in their place.
  defp docs do
    [
      main: "readme",
      logo: "docs/images/logo.svg",
      assets: %{"docs/images" => "docs/images", "docs/docker" => "docker"},
      source_url_pattern:
        @links["Source"] && @links["Source"] <> "/blob/v#{@version}/elixir_client/%{path}#L%{line}",
      extras: ["README.md"] ++ Enum.flat_map(@pages, &elem(&1, 1)) ++ ["CHANGELOG.md"],
      groups_for_extras: @pages,
      groups_for_modules: [
        Requests: [PyPort, :py_port, PyPort.Module, PyPort.Session, PyPort.Object, PyPort.Code, PyPort.Error],
        Values: [PyPort.Bytes, PyPort.Encoder, PyPort.Table, PyPort.Tensor],
        "Servers and pools": [PyPort.Server, PyPort.Pool, PyPort.Batcher, PyPort.Status, PyPort.Telemetry],
        Environments: [PyPort.Env, PyPort.Release],
        "Shells and notebooks": [PyPort.Interactive, PyPort.Sigils]
      ]
    ]
  end

  # By their endings, so that nothing that was built beside the sources gets in.
  defp package do
    [
      licenses: ["Apache-2.0"],
      links: @links,
      files:
        ~w(mix.exs .formatter.exs README.md CHANGELOG.md LICENSE lib/**/*.ex c_src/*.c examples/*.exs examples/data) ++
          ~w(priv/package/{LICENSE,README.md,pyproject.toml,requirements.txt,setup.py} priv/python/port_server/**/*.{py,pyi,typed,c,h})
    ]
  end
end
