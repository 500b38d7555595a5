defmodule PyPort.Test.FakeUv do
  # A small real program in the place of uv: it makes environments that work (on the packages of the tests' own Python),
  # needs no network, writes down what it was told, and fails where a test wants it to.

  @doc """
  Writes a uv into `dir` and gives its path.

  `says` replaces what a subcommand (`"lock"`, `"venv"`, `"sync"`, `"pip"`, `"build"`, `"--version"`) does, by shell code.
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
    python = System.get_env("PYPORT_PYTHON") || "python3"

    %{
      "--version" => "echo 'uv 0.9.9 (a fake)'",
      "lock" => ~S"""
      echo 'Resolved 1 package' >&2
      requires=$(sed -n 's/^requires-python = //p' pyproject.toml)
      printf 'version = 1\nrequires-python = %s\n' "${requires:-\">=3.11\"}" >uv.lock
      """,
      "venv" => """
      #{python} -m venv --without-pip "$last"
      #{python} -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(echo "$last"/lib/python3*/site-packages)/tests.pth"
      # An editable install is a .pth file itself, which is not followed from another.
      echo '#{File.cwd!() |> Path.join("..") |> Path.expand()}' >>"$(echo "$last"/lib/python3*/site-packages)/tests.pth"
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
end
