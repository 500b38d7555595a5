defmodule PyPort.Env.ConfigTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.Config

  @toml "[project]\nname = \"x\"\n"

  test "no configuration is no environment" do
    assert Config.all!(nil, "/app") == []
  end

  test "one project is the environment :default, its lock in priv" do
    assert [%Config{name: :default, pyproject_toml: @toml} = config] =
             Config.all!([pyproject_toml: @toml], "/app")

    assert Config.lock_path(config) == "/app/priv/py_port/default/uv.lock"
  end

  test "several environments share what stands beside them, and may say otherwise" do
    environments = [ml: [project: "python/ml"], web: [pyproject_toml: @toml, offline: false]]
    assert [ml, web] = Config.all!([offline: true, environments: environments], "/app")
    assert %Config{name: :ml, project: "/app/python/ml", offline: true} = ml
    assert %Config{name: :web, offline: false} = web
    assert Config.lock_path(ml) == "/app/python/ml/uv.lock"
  end

  test "an index replaces PyPI, an extra one stands beside it" do
    assert [config] =
             Config.all!(
               [pyproject_toml: @toml, index: ["https://a.test", {:extra, "https://b.test"}]],
               "/app"
             )

    assert Config.index_args(config) == ["--default-index", "https://a.test", "--index", "https://b.test"]
    assert [config] = Config.all!([pyproject_toml: @toml, index: "https://a.test"], "/app")
    assert Config.index_args(config) == ["--default-index", "https://a.test"]
  end

  test "what is asked for has a digest of its own, how it is built has none" do
    digest = fn options ->
      Config.digest(Config.new!(:default, [pyproject_toml: @toml] ++ options, "/app"))
    end

    for options <- [[offline: true], [frozen: true], [native_tls: true], [uv: "/uv"]],
        do: assert(digest.(options) == digest.([]))

    for options <- [[python: "3.12"], [index: "https://a.test"], [extra_args: ["--extra", "x"]]],
        do: assert(digest.(options) != digest.([]))
  end

  @tag :tmp_dir
  test "a project's own sources are part of its digest, what tools leave there is not", %{tmp_dir: dir} do
    File.write!(Path.join(dir, "pyproject.toml"), @toml)
    File.mkdir_p!(Path.join(dir, "src/thing"))
    File.write!(Path.join(dir, "src/thing/a.py"), "1")
    digest = fn -> Config.digest(Config.new!(:default, [project: dir], "/app")) end
    before = digest.()
    File.mkdir_p!(Path.join(dir, ".venv/lib"))
    File.write!(Path.join(dir, ".venv/lib/x.py"), "2")
    File.write!(Path.join(dir, "uv.lock"), "")
    assert digest.() == before
    File.write!(Path.join(dir, "src/thing/a.py"), "3")
    assert digest.() != before
  end

  @tag :tmp_dir
  test "beside a mix.exs the application's own files are no part of it, those of a package are", %{
    tmp_dir: dir
  } do
    digest = fn -> Config.digest(Config.new!(:default, [project: dir], "/app")) end

    changed? = fn name ->
      before = digest.()
      File.mkdir_p!(Path.dirname(Path.join(dir, name)))
      File.write!(Path.join(dir, name), "#{System.unique_integer()}")
      digest.() != before
    end

    File.write!(Path.join(dir, "mix.exs"), "")
    File.write!(Path.join(dir, "pyproject.toml"), @toml)
    refute changed?.("lib/app.ex")
    refute changed?.("_build/dev/x")
    assert changed?.(".python-version")
    assert changed?.("uv.toml")

    File.write!(Path.join(dir, "pyproject.toml"), @toml <> "[build-system]\n")
    refute changed?.("_build/dev/x")
    refute changed?.("deps/other/x")
    assert changed?.("src/thing/a.py")
    assert changed?.("src/thing/deps/a.py")
    assert changed?.("pyproject.toml")
  end

  for {what, config, words} <- [
        {"an unknown option", [pyprojct: @toml], "unknown option :pyprojct"},
        {"no project", [offline: true], "names no environment"},
        {"two projects in one", [pyproject_toml: @toml, project: "x"], "one will do"},
        {"a name that cannot be a directory", [environments: ["../x": [project: "x"]]],
         "name of a Python environment"},
        {"two called :default", [project: "x", environments: [default: [project: "y"]]], "two environments"},
        {"a range where a version is meant", [project: "x", uv_version: "~> 0.9"], "a full version of uv"},
        {"text where a list is meant", [project: "x", extra_args: "--extra gpu"], "a list of strings"},
        {"no list at all", "numpy", "keyword list"}
      ] do
    test "#{what} is refused in words" do
      error = assert_raise ArgumentError, fn -> Config.all!(unquote(config), "/app") end
      assert Exception.message(error) =~ unquote(words)
    end
  end
end
