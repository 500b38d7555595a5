defmodule PyPort.MixProjectTest do
  # The settings for ExDoc and Hex, which are not installed here: all that mix.exs names exists, and the archive has
  # the files that it needs and no others.
  use ExUnit.Case, async: true

  @project Path.expand("../..", __DIR__)
  @client Path.join(@project, "elixir_client")

  defp config, do: Mix.Project.config()
  defp docs, do: config()[:docs]
  defp existing(paths), do: Enum.filter(paths, &File.exists?(Path.join(@client, &1)))

  # As mix hex.build does.
  defp files(directory) do
    for pattern <- config()[:package][:files],
        path <- Path.wildcard(Path.join(directory, pattern), match_dot: true),
        file <- if(File.dir?(path), do: Path.wildcard(Path.join(path, "**"), match_dot: true), else: [path]),
        File.regular?(file),
        uniq: true,
        do: Path.relative_to(file, directory)
  end

  defp below(root, folder) do
    for file <- Path.wildcard(Path.join([root, folder, "**"]), match_dot: true),
        File.regular?(file),
        not (file =~ ~r{/__pycache__/|\.so$|/_stub$}),
        do: Path.relative_to(file, root)
  end

  defp lay_out(directory) do
    script = Path.join(@project, "scripts/package.sh")
    {said, status} = System.cmd("sh", [script, directory], stderr_to_stdout: true)
    assert {status, said} == {0, ""}
    directory
  end

  describe "documentation" do
    test "every page exists, and each file of docs/ is a page" do
      assert existing(docs()[:extras]) == docs()[:extras]

      pages =
        for pattern <- ~w(README.md CHANGELOG.md docs/*.md notebooks/*.livemd),
            page <- Path.wildcard(Path.join(@project, pattern)),
            do: Path.relative_to(page, @project)

      assert Enum.sort(docs()[:extras]) == Enum.sort(pages)
    end

    test "main is a page, and logo and assets exist" do
      assert docs()[:main] in for(
               page <- docs()[:extras],
               do: page |> Path.basename(".md") |> String.downcase()
             )

      others = [docs()[:logo] | Map.keys(docs()[:assets])]
      assert existing(others) == others
    end

    test "the groups name every page but the first and the last, and every module with a page once" do
      assert docs()[:groups_for_extras] |> Enum.flat_map(&elem(&1, 1)) |> Enum.sort() ==
               Enum.sort(docs()[:extras] -- ["README.md", "CHANGELOG.md"])

      {:ok, modules} = :application.get_key(:py_port, :modules)

      public =
        for module <- modules,
            # Tasks have a group of their own in ExDoc.
            not (inspect(module) =~ ~r/^(Mix\.Tasks|PyPort\.Test|Inspect)\./),
            {:docs_v1, _line, _language, _format, doc, _meta, _docs} = Code.fetch_docs(module),
            doc not in [:hidden, :none],
            do: module

      assert docs()[:groups_for_modules] |> Enum.flat_map(&elem(&1, 1)) |> Enum.sort() == Enum.sort(public)
    end

    test "links from one page to another lead to a page or an asset" do
      # ExDoc knows pages by their file names. Folders are in the repository only.
      names = Enum.map(docs()[:extras], &Path.basename/1)

      assets =
        for {from, to} <- docs()[:assets],
            file <- below(@client, from),
            do: Path.join(to, Path.basename(file))

      for page <- docs()[:extras],
          [_all, path] <- Regex.scan(~r/\]\(([^)#:\s]+)(?:#[^)]*)?\)/, File.read!(Path.join(@client, page))),
          not File.dir?(Path.expand(path, Path.dirname(Path.join(@project, page)))) do
        assert {page, path, Path.basename(path) in names or path in assets} == {page, path, true}
      end
    end
  end

  describe "Credo" do
    test "its settings are read, and name folders that exist and checks of Credo" do
      {%{configs: [config]}, []} = Code.eval_file(Path.join(@client, ".credo.exs"))
      assert existing(config.files.included) == config.files.included
      %{extra: extra, disabled: disabled} = config.checks

      for {check, options} <- extra ++ disabled do
        assert inspect(check) =~ ~r/^Credo\.Check\.\w+\.\w+$/
        assert is_list(options)
      end
    end
  end

  describe "package" do
    test "the metadata is what Hex asks for" do
      assert String.length(config()[:description]) in 1..300
      assert config()[:package][:licenses] == ["Apache-2.0"]
      assert is_map(config()[:package][:links])
      # Hex refuses a pattern that finds nothing.
      for pattern <- config()[:package][:files],
          do: assert({pattern, Path.wildcard(Path.join(@client, pattern), match_dot: true)} != {pattern, []})

      # It would be a requirement of everybody.
      assert config()[:deps] == []
    end

    @tag :tmp_dir
    test "it has the client, the sources of the server and what builds them, and nothing else", %{
      tmp_dir: tmp_dir
    } do
      package = lay_out(Path.join(tmp_dir, "package"))
      server = for file <- below(@project, "port_server"), do: Path.join("priv/python", file)
      build = ~w(LICENSE README.md pyproject.toml requirements.txt setup.py)

      expected =
        ~w(mix.exs .formatter.exs README.md CHANGELOG.md LICENSE) ++
          below(@client, "lib") ++
          below(@client, "examples") ++ Enum.map(build, &Path.join("priv/package", &1)) ++ server

      assert {files(package) -- expected, expected -- files(package)} == {[], []}
      for suffix <- ~w(.py .pyi .c .h .typed), do: assert(Enum.any?(server, &(Path.extname(&1) == suffix)))
    end

    @tag :tmp_dir
    test "it has no link, neither out of it nor within", %{tmp_dir: tmp_dir} do
      package = lay_out(Path.join(tmp_dir, "package"))
      # The repository has, so this can fail.
      assert File.lstat!(Path.join(@client, "priv/python/port_server")).type == :symlink
      paths = Path.wildcard(Path.join(package, "**"), match_dot: true)
      assert length(paths) > 100
      assert Enum.filter(paths, &(File.lstat!(&1).type == :symlink)) == []
    end

    @tag :tmp_dir
    @tag :slow
    @tag timeout: 180_000
    test "the files of the archive are enough to compile and to run Python", %{tmp_dir: tmp_dir} do
      package = lay_out(Path.join(tmp_dir, "package"))
      archive = Path.join(tmp_dir, "py_port")

      for file <- files(package) do
        File.mkdir_p!(Path.dirname(Path.join(archive, file)))
        File.cp!(Path.join(package, file), Path.join(archive, file))
      end

      # The Python of the tests has the server as well, but this comes first.
      python_path = Path.join(archive, "priv/python")
      code = ~S|IO.puts("ran: " <> PyPort.eval!("import port_server; port_server.__file__"))|
      options = [cd: archive, env: [{"MIX_ENV", "prod"}, {"PYTHONPATH", python_path}], stderr_to_stdout: true]
      {said, status} = System.cmd("mix", ["run", "-e", code], options)
      assert {status, said} == {0, said}
      assert said =~ "ran: #{python_path}/port_server/__init__.py"
      refute said =~ "warning:"
    end
  end
end
