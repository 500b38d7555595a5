defmodule Mix.Tasks.PyPort.PythonTest do
  # mix py_port.python, run, test, add, remove and debug, as programs in a project of their own.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  setup %{tmp_dir: dir} do
    File.mkdir_p!(Path.join(dir, "priv/python"))
    File.write!(Path.join(dir, "priv/python/mine_own.py"), "value = 42\n")
    File.mkdir_p!(Path.join(dir, "config"))

    File.write!(Path.join(dir, "mix.exs"), """
    defmodule Mine.MixProject do
      use Mix.Project
      def project, do: [app: :mine, version: "0.1.0", deps: [{:py_port, path: #{inspect(File.cwd!())}}]]
    end
    """)

    :ok
  end

  defp mix(dir, args) do
    python = System.get_env("PYPORT_PYTHON") || System.find_executable("python3")
    env = [{"MIX_ENV", "test"}, {"PYPORT_PYTHON", python}, {"MIX_BUILD_PATH", Path.join(dir, "_build")}]

    {said, status} =
      System.cmd("sh", ["-c", ~s(mix "$@" < /dev/null), "sh" | args],
        cd: dir,
        env: env,
        stderr_to_stdout: true
      )

    {String.replace(said, ~r/^(==> |Compiling|Generated).*\n/m, ""), status}
  end

  @tag timeout: 180_000
  @tag :slow
  test "each does what its page says", %{tmp_dir: dir} do
    code = "import sys, mine_own; print(mine_own.value, sys.argv[1:], sys.stdin.read() == '')"
    assert {said, 0} = mix(dir, ["py_port.python", "--", "-c", code, "--env", "a"])
    assert said =~ "42 ['--env', 'a'] True"

    File.write!(
      Path.join(dir, "script.py"),
      "import sys, mine_own\nprint(sys.argv, mine_own.value)\nsys.exit(3)\n"
    )

    assert {said, 3} = mix(dir, ["py_port.run", "script.py", "-x", "1"])
    assert said =~ "['script.py', '-x', '1'] 42"
    assert {said, 1} = mix(dir, ["py_port.run", "no.py"])
    assert said =~ "the Python file no.py does not exist"

    File.write!(
      Path.join(dir, "test_mine.py"),
      "import mine_own\ndef test_value(): assert mine_own.value == 42\n"
    )

    {said, status} = mix(dir, ["py_port.test", "-q", "test_mine.py", "-p", "no:cacheprovider"])

    assert {status, said =~ "1 passed"} == {0, true} or
             {status, said =~ "pytest is not in the environment"} == {1, true}

    assert {said, 1} = mix(dir, ["py_port.add", "numpy"])
    assert said =~ "config :py_port, :uv_init is not set"
  end

  @tag timeout: 180_000
  @tag :slow
  test "add and remove print the lines for a project that is text", %{tmp_dir: dir} do
    File.write!(Path.join(dir, "config/config.exs"), """
    import Config
    config :py_port, :uv_init, pyproject_toml: "[project]\\nname = 'x'\\nversion = '0.0.0'\\ndependencies = []"
    """)

    assert {said, 0} = mix(dir, ["py_port.add", "numpy>=2", "six"])
    assert said =~ ~s(Add this to `dependencies` there:\n\n      "numpy>=2",\n      "six",)
    assert {said, 0} = mix(dir, ["py_port.remove", "six"])
    assert said =~ ~s(Remove this from `dependencies` there:\n\n      "six",)
    assert {said, 1} = mix(dir, ["py_port.add"])
    assert said =~ "needs the names of packages"
  end
end
