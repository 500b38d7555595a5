"""For tests/env: a Mix project outside the repository, and the page that it follows."""

import os
import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs/environments.md").read_text()
MINUTES = 60

SMALL = """
[project]
name = "small"
version = "0.0.0"
requires-python = ">=3.11"
dependencies = ["python-dateutil"]
"""


def block(first_line):
    """Give the page's code block that begins with this line."""
    (found,) = re.findall(rf"```\w+\n({re.escape(first_line)}\n.*?)```", PAGE, re.DOTALL)
    return found


def commands(after):
    """Give the commands of the page's first shell block after a heading."""
    return re.search(rf"{re.escape(after)}.*?```sh\n(.*?)```", PAGE, re.DOTALL).group(1).strip()


class Done:
    """How a command has ended, and everything it said."""

    def __init__(self, process, said):
        self.status, self.said = process.returncode, said
        # Without the records of Logger's that nobody wants to see but at the level debug.
        self.plain = re.sub(r"\s*[\d:.]+ \[debug\] [^\n]*\n?", "", said)

    def __repr__(self):
        return f"status {self.status}\n{self.said}"


class Host:
    """A Mix project of somebody who uses PyPort."""

    def __init__(self, path, variables):
        self.path, self.variables = path, variables

    def configure(self, elixir):
        (self.path / "config").mkdir(exist_ok=True)
        config = self.path / "config/config.exs"
        config.write_text(f"import Config\n{elixir}\n")
        # To Mix a younger configuration is a reason to compile everything again.
        os.utime(config, (0, 0))

    def uv_init(self, toml=SMALL, **options):
        more = "".join(f", {name}: {value}" for name, value in options.items())
        self.configure(f'config :py_port, :uv_init, pyproject_toml: """\n{toml}"""{more}')

    def popen(self, *command, cwd=None, **variables):
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd or self.path,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command, **options):
        process = self.popen(*command, **options)
        try:
            said, _ = process.communicate(timeout=10 * MINUTES)
        finally:
            process.kill()
        return Done(process, said)

    def mix(self, *arguments, **options):
        return self.run("mix", *arguments, **options)

    def eval(self, code, **options):
        """Evaluate Python in the application, as `mix run` starts it."""
        elixir = f"IO.inspect(PyPort.eval(~S'''\n{code}\n''', %{{}}, timeout: 120_000))"
        return self.mix("run", "-e", elixir, **options)

    def built(self, env="dev", name="default"):
        """Give the record of an environment, or None."""
        record = self.path / f"_build/{env}/py_port/{name}.term"
        return record.read_text() if record.exists() else None

    def directories(self, env="dev"):
        base = self.path / f"_build/{env}/py_port"
        return sorted(path.name for path in base.iterdir() if path.is_dir())
