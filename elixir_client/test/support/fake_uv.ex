defmodule PyPort.Test.FakeUv do
  # A small real program in the place of uv: it makes environments that work (on the packages of the tests' own Python),
  # needs no network, writes down what it was told, and fails where a test wants it to.

  @doc """
  Writes a uv into `dir` and gives its path.

  `says` replaces what a subcommand (`"lock"`, `"venv"`, `"python"`, `"sync"`, `"pip"`, `"build"`, `"--version"`) does, by
  shell code.
  """
  def write(dir, says \\ %{}) do
    path = Path.join(dir, "uv")

    cases = for {command, code} <- Map.merge(defaults(dir), says), into: "", do: "#{command})\n#{code}\n;;\n"

    File.mkdir_p!(dir)

    File.write!(path, """
    #!/bin/sh
    printf '%s\\n' "$*" >>'#{log(dir)}'
    for last; do :; done
    case $1 in
    #{cases}esac
    """)

    File.chmod!(path, 0o755)
    path
  end

  @doc "What that uv was told: a line for each call."
  def calls(dir) do
    case File.read(log(dir)) do
      {:ok, text} -> String.split(text, "\n", trim: true)
      {:error, :enoent} -> []
    end
  end

  @doc "The subcommands of those calls."
  def commands(dir),
    do: for(call <- calls(dir), command = call |> String.split() |> hd(), command != "--version", do: command)

  defp log(dir), do: Path.join(dir, "calls")

  defp defaults(_dir) do
    %{python: python, home: home, minor: minor, packages: packages} = python()
    site = ~s("$last"/lib/python#{minor}/site-packages)
    repository = Path.expand("..", File.cwd!())

    %{
      "--version" => "echo 'uv 0.9.9 (a fake)'",
      "lock" => ~S"""
      echo 'Resolved 1 package' >&2
      requires=$(sed -n 's/^requires-python = //p' pyproject.toml)
      printf 'version = 1\nrequires-python = %s\n' "${requires:-\">=3.11\"}" >uv.lock
      """,
      "python" => python_found(),
      # As `python -m venv` makes them, a hundred times faster. An editable install is a .pth file, and those are not
      # followed from another, so the repository is named, too.
      "venv" => """
      mkdir -p "$last/bin" #{site}
      ln -s '#{python}' "$last/bin/python"
      echo 'home = #{home}' >"$last/pyvenv.cfg"
      printf '%s\\n' '#{packages}' '#{repository}' >#{site}/tests.pth
      """,
      "sync" => ~S"""
      site=$(echo "$UV_PROJECT_ENVIRONMENT"/lib/python3*/site-packages)
      mkdir -p "$site/thing-1.0.dist-info"
      echo 'thing.py,,' >"$site/thing-1.0.dist-info/RECORD"
      echo 'answer = 42' >"$site/thing.py"
      echo ' + thing==1.0'
      """,
      "pip" => ":",
      "build" => "echo 'no build tools here'; exit 2"
    }
  end

  @doc "The shell code of `uv python find`."
  def python_found, do: "echo '#{python().python}'"

  @facts "import os, sys, sysconfig as s; b = os.path.realpath(sys._base_executable); " <>
           "print(b, os.path.dirname(b), '%d.%d' % sys.version_info[:2], s.get_path('purelib'), sep='\\n')"

  # The Python of the tests, asked once.
  defp python do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      {said, 0} = System.cmd(System.get_env("PYPORT_PYTHON") || "python3", ["-c", @facts])
      [python, home, minor, packages] = String.split(said, "\n", trim: true)
      facts = %{python: python, home: home, minor: minor, packages: packages}
      :persistent_term.put(__MODULE__, facts)
      facts
    end
  end
end
