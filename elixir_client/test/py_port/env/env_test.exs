defmodule PyPort.EnvTest do
  # Environments are known by name in the whole VM.
  use ExUnit.Case, async: false

  alias PyPort.{Env, Error, SyntaxCheck}
  alias PyPort.Env.{Config, Manifest}
  alias PyPort.Test.{FakeUv, Servers}

  @moduletag :tmp_dir
  @toml "[project]\nname = \"x\"\nversion = \"0.0.0\"\nrequires-python = \">=3.11\"\n"

  setup %{tmp_dir: dir} do
    uv = FakeUv.write(Path.join(dir, "uv"))
    name = :"unit_#{System.unique_integer([:positive])}"
    {:ok, name: name, options: [name: name, uv: uv, cache_dir: Path.join(dir, "cache")]}
  end

  # uv's words would stand among the dots.
  defp uv_init(options) do
    {result, _said} = ExUnit.CaptureIO.with_io(fn -> PyPort.uv_init(@toml, options) end)
    result
  end

  defp record(name) do
    {:ok, manifest, dir} = Env.fetch(name)
    {Path.dirname(dir), manifest}
  end

  # The environment without its interpreter: its record, and the path that is free now.
  defp take_interpreter(name) do
    {base, stamp} = record(name)
    link = Path.join([base, stamp.dir, stamp.python.executable])
    File.rm!(link)
    {stamp, link}
  end

  # A shell script in its place.
  defp put_interpreter(name, script) do
    {_stamp, link} = take_interpreter(name)
    File.write!(link, "#!/bin/sh\n#{script}\n")
    File.chmod!(link, 0o755)
  end

  # The environment's record, with something else in it; servers read it when they start.
  defp change(name, fun) do
    {base, stamp} = record(name)
    Manifest.write!(base, fun.(stamp))
  end

  defp unavailable(name) do
    server = :"server_#{System.unique_integer([:positive])}"
    start_supervised!({PyPort.Server, name: server, python_env: name, logger: false})

    assert {:error, %Error{kind: :unavailable, begun: false, message: words}} =
             PyPort.eval("1", %{}, server: server)

    stop_supervised!(server)
    words
  end

  test "uv_init/2 builds once, and a server runs in what was built", %{
    name: name,
    options: options,
    tmp_dir: dir
  } do
    assert uv_init(options) == :ok
    server = Servers.start_server(python_env: name)
    assert {:ok, 42} = PyPort.eval("import thing; thing.answer", %{}, server: server)
    assert uv_init(options) == :ok
    assert Enum.count(FakeUv.commands(Path.join(dir, "uv")), &(&1 == "sync")) == 1
  end

  for default <- [:default, :the_only_one] do
    test "a server and a pool that name no Python run in the environment #{inspect(default)}", %{
      name: name,
      options: options
    } do
      :ok = uv_init(options)
      {base, stamp} = record(name)
      Manifest.write!(base, %{stamp | name: unquote(default)})
      put_env("PYPORT_ENVS", "#{unquote(default)}=#{base}")
      {:ok, pool} = PyPort.Pool.start_link(size: 1)
      {:ok, server} = PyPort.Server.start_link()

      for one <- [pool, server],
          do: assert({:ok, 42} = PyPort.eval("import thing; thing.answer", %{}, server: one))

      # A Python that is named is used.
      python = System.get_env("PYPORT_PYTHON") || "python3"
      {:ok, other} = PyPort.Server.start_link(python: python)
      assert {:error, %Error{type: "ModuleNotFoundError"}} = PyPort.eval("import thing", %{}, server: other)
      Enum.each([pool, server, other], &GenServer.stop/1)
    end
  end

  for {what, environments, given, expected} <- [
        {"none", [], [], nil},
        {"one", [:default], [], :default},
        {"one of another name", [:ml], [], :ml},
        {"several", [:ml, :default, :web], [], :default},
        {"several, none of them :default", [:ml, :web], [], nil},
        {"one, beside python:", [:default], [python: "python3"], nil},
        {"one, beside python_env:", [:default], [python_env: :other], :other}
      ] do
    test "which environment a server or a pool runs in: configured is #{what}" do
      was = Application.get_env(:py_port, :uv_init)

      on_exit(fn ->
        if was,
          do: Application.put_env(:py_port, :uv_init, was),
          else: Application.delete_env(:py_port, :uv_init)
      end)

      environments = for name <- unquote(environments), do: {name, pyproject_toml: @toml}

      Application.put_env(
        :py_port,
        :uv_init,
        if(environments == [], do: [], else: [environments: environments])
      )

      assert Env.put_default(unquote(given))[:python_env] == unquote(expected)

      assert %{python_env: unquote(expected)} =
               Env.put_default(Map.merge(%{python: nil, python_env: nil}, Map.new(unquote(given))))
    end
  end

  # As `recompile()` in IEx builds, after a change, and after one more.
  test "a server goes on in its environment while that is built anew twice", %{name: name, options: options} do
    :ok = uv_init(options)
    server = Servers.start_server(python_env: name)
    {:ok, prefix} = PyPort.eval("import sys; sys.prefix", %{}, server: server)
    for _ <- 1..2, do: :ok = uv_init([force: true] ++ options)
    # A module that it has not imported yet.
    assert {:ok, 42} = PyPort.eval("import thing; thing.answer", %{}, server: server)
    assert File.dir?(prefix)
    next = Servers.start_server(python_env: name)
    assert {:ok, other} = PyPort.eval("import sys; sys.prefix", %{}, server: next)
    assert other != prefix
  end

  test "another Python by UV_PYTHON builds from nothing", %{name: name, options: options, tmp_dir: dir} do
    code = ~s([ -z "$4" ] && { #{FakeUv.python_found()}; exit; }; echo "$4")
    FakeUv.write(Path.join(dir, "uv"), %{"python" => code})
    made = fn -> Enum.count(FakeUv.commands(Path.join(dir, "uv")), &(&1 == "venv")) end
    outdated = fn -> change(name, &%{&1 | source: "an earlier port server"}) end
    :ok = uv_init(options)
    outdated.()
    :ok = uv_init(options)
    assert made.() == 1
    put_env("UV_PYTHON", "/bin/sh")
    outdated.()
    :ok = uv_init(options)
    assert made.() == 2
  end

  test "servers start in the earlier environment until the new one is whole", %{
    name: name,
    options: options,
    tmp_dir: dir
  } do
    :ok = uv_init(options)
    {:ok, earlier} = Env.interpreter(name)
    go = Path.join(dir, "go")
    sync = "touch '#{dir}/syncing'; while [ ! -e '#{go}' ]; do sleep 0.01; done"
    FakeUv.write(Path.join(dir, "uv"), %{"sync" => sync})
    building = Task.async(fn -> uv_init([force: true] ++ options) end)
    assert PyPort.Test.Processes.eventually(fn -> File.exists?(Path.join(dir, "syncing")) end)
    assert Env.interpreter(name) == {:ok, earlier}

    assert {:ok, 42} =
             PyPort.eval("import thing; thing.answer", %{}, server: Servers.start_server(python_env: name))

    File.touch!(go)
    assert Task.await(building, 30_000) == :ok
    assert {:ok, later} = Env.interpreter(name)
    assert later != earlier and File.exists?(later)
  end

  test "a ModuleNotFoundError names the Python, the environment, and the one that has the module", %{
    name: name,
    options: options,
    tmp_dir: dir
  } do
    :ok = uv_init(options)
    FakeUv.write(Path.join(dir, "uv"), %{"sync" => ":"})
    other = :"#{name}_other"
    :ok = uv_init(Keyword.merge(options, name: other, extra_args: ["--extra", "none"]))
    python = System.get_env("PYPORT_PYTHON") || "python3"

    for {options, where} <- [
          {[python_env: other], "in the environment #{inspect(other)}"},
          {[python: python], "in no environment of config :py_port, :uv_init"}
        ] do
      server = Servers.start_server(options)
      assert {:error, error} = PyPort.eval("import thing", %{}, server: server)
      assert Exception.message(error) =~ ~r/ModuleNotFoundError: No module named 'thing'\nThis is Python 3/
      assert Exception.message(error) =~ where
      # Other tests have made some, too.
      assert Exception.message(error) =~ ~r/thing is in the environment .*#{inspect(name)}\b/
      assert Exception.message(error) =~ ": start the server or pool with python_env: :"
    end
  end

  # Somebody else's packages, and a standard library that is none.
  test "an environment sees itself alone, whatever the BEAM was started with, unless the server says otherwise",
       %{
         name: name,
         options: options,
         tmp_dir: dir
       } do
    :ok = uv_init(options)
    File.write!(Path.join(dir, "thing.py"), "answer = 'a stranger'")
    put_env("PYTHONPATH", dir)
    put_env("PYTHONHOME", "/no/such/home")
    code = "import os, site, thing; [thing.answer, os.environ.get('PYTHONHOME'), bool(site.ENABLE_USER_SITE)]"
    server = Servers.start_server(python_env: name)
    assert PyPort.eval(code, %{}, server: server) == {:ok, [42, nil, false]}
    asked = Servers.start_server(python_env: name, env: [{"PYTHONPATH", dir}])
    assert {:ok, ["a stranger", nil, false]} = PyPort.eval(code, %{}, server: asked)
  end

  test "sigils are checked by an environment whatever the BEAM was started with", %{
    name: name,
    options: options
  } do
    :ok = uv_init(options)
    put_env("PYTHONHOME", "/no/such/home")
    was = Application.get_env(:py_port, :pool)
    Application.put_env(:py_port, :pool, python_env: name)
    if Process.whereis(SyntaxCheck), do: GenServer.stop(SyntaxCheck)
    on_exit(fn -> Application.put_env(:py_port, :pool, was || []) end)
    assert {:ok, %{bound: ["x"]}} = SyntaxCheck.of("x = 1")
    GenServer.stop(SyntaxCheck)
  end

  defp put_env(name, value) do
    was = System.get_env(name)
    System.put_env(name, value)
    on_exit(fn -> if was, do: System.put_env(name, was), else: System.delete_env(name) end)
  end

  test "uv_init/2 that goes well makes up for a build that did not", %{
    name: name,
    options: options,
    tmp_dir: dir
  } do
    {_name, configured} = Keyword.pop!(options, :name)
    FakeUv.write(Path.join(dir, "uv"), %{"sync" => "echo 'nothing works'; exit 1"})
    config = Config.new!(name, [pyproject_toml: @toml] ++ configured, dir)
    assert {{:error, _words}, _said} = ExUnit.CaptureIO.with_io(fn -> Env.build(config) end)
    assert unavailable(name) =~ "nothing works"
    FakeUv.write(Path.join(dir, "uv"))
    assert uv_init(options) == :ok
    assert {:ok, _python} = Env.interpreter(name)
  end

  test "uv_init/2 gives what went wrong as an error", %{options: options, tmp_dir: dir} do
    FakeUv.write(Path.join(dir, "uv"), %{"sync" => "echo 'nothing works'; exit 1"})
    assert {:error, %Error{kind: :unavailable, message: words}} = uv_init(options)
    assert words =~ "nothing works"
    assert_raise ArgumentError, ~r/unknown option :offlin/, fn -> PyPort.uv_init(@toml, offlin: true) end
  end

  test "an environment that is not there is said to be, by name" do
    assert unavailable(:no_such_env) =~ "no Python environment :no_such_env"
  end

  test "a Python that was removed is named, with the way out", %{name: name, options: options} do
    :ok = uv_init(options)
    {stamp, link} = take_interpreter(name)
    File.ln_s!("/no/such/python3", link)
    words = unavailable(name)
    assert words =~ "needs Python #{stamp.python.version}" and words =~ "mix py_port.sync --force"
  end

  test "an interpreter that does not start is refused with what to do", %{name: name, options: options} do
    :ok = uv_init(options)
    loader = "python: error while loading shared libraries: libffi.so.8: no such file"
    put_interpreter(name, "echo '#{loader}' >&2\nexit 127")
    words = unavailable(name)

    assert words =~ "a Python that does not start" and
             words =~ "The shared library libffi.so.8 is missing here"
  end

  test "an interpreter of another version is refused before it looks for its packages", %{
    name: name,
    options: options
  } do
    :ok = uv_init(options)
    put_interpreter(name, "echo Python 3.99.1")

    assert unavailable(name) =~
             "Python 3.99.1 runs, and the packages of the environment #{inspect(name)} are for Python 3."
  end

  test "a record of another libc refuses the environment before anything runs", %{
    name: name,
    options: options
  } do
    :ok = uv_init(options)
    change(name, &%{&1 | libc: {:unheard_of, "1.0"}})
    assert unavailable(name) =~ "was built for unheard_of 1.0, and this system has"
  end

  test "a running Python of another minor version is refused", %{name: name, options: options} do
    :ok = uv_init(options)
    {_base, %{python: %{version: version}}} = record(name)
    assert Env.running(name, %{python: version}) == :ok
    assert {:error, words} = Env.running(name, %{python: "3.99.1"})
    assert words =~ "Python 3.99.1 runs"
    assert Env.running(nil, %{python: "3.99.1"}) == :ok
  end

  test "another node is told the same environments by variables and paths", %{name: name, options: options} do
    :ok = uv_init(options)
    {base, stamp} = record(name)
    assert %{"PYPORT_ENVS" => places} = PyPort.install_env()
    assert "#{name}=#{base}" in String.split(places, ":")
    assert Path.join(base, stamp.dir) in PyPort.install_paths()
    assert Manifest.path(base, name) in PyPort.install_paths()

    # What that node does with it: the same name, found by the variable alone.
    System.put_env("PYPORT_ENVS", "elsewhere_#{name}=#{base}")
    on_exit(fn -> System.delete_env("PYPORT_ENVS") end)
    File.cp!(Manifest.path(base, name), Manifest.path(base, :"elsewhere_#{name}"))
    assert Env.fetch(:"elsewhere_#{name}") == :error
    change(name, &Map.put(&1, :name, :"elsewhere_#{name}"))
    assert {:ok, _python} = Env.interpreter(:"elsewhere_#{name}")
  end

  test "one interpreter is enough" do
    assert_raise ArgumentError, ~r/only one of them/, fn ->
      PyPort.Server.start_link(python: "python3", python_env: :default)
    end

    assert_raise ArgumentError, ~r/:python_env must be the name/, fn ->
      PyPort.Server.start_link(python_env: "default")
    end
  end

  test "directories of uv's own Pythons are told from others" do
    for prefix <- [
          "/x/cpython-3.12.4-linux-x86_64-gnu",
          "/x/cpython-3.13-macos-aarch64-none",
          "/x/pypy-3.11.13-linux-x86_64-gnu"
        ],
        do: assert(Env.managed?(prefix))

    for prefix <- ["/usr", "/usr/local", "/home/x/.pyenv/versions/3.12.1", "/opt/cpython-linux"],
        do: refute(Env.managed?(prefix))
  end
end
