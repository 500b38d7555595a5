"""The commands of the Dockerfiles, outside of Docker: all but the system's package manager."""

import re
import shutil
import subprocess

import pytest
from dockerfile import DOCKER, stages
from mix_project import Host

pytestmark = pytest.mark.env

# What only root in an image of its own can do, and what the machine of the tests has already.
START = "{:ok, _} = Application.ensure_all_started(:py_port);"
SYSTEM = re.compile(r"apt-get|apk |/etc/apt/")


class Image:
    """A directory in the place of an image's root."""

    def __init__(self, root, variables):
        self.root, self.variables, self.directory = root, variables, root
        root.mkdir()

    def place(self, path):
        return self.root / path.lstrip("/") if path.startswith("/") else self.directory / path

    def copy(self, source, target):
        if not source.exists():
            pytest.fail(f"COPY {source}: not there")
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, target / source.name if target.is_dir() else target)

    def replay(self, stage, contexts, own):
        """Run a stage; give the words of its CMD."""
        for word, flags, rest, _comment in stage:
            if word == "WORKDIR":
                self.directory = self.place(rest)
                self.directory.mkdir(parents=True, exist_ok=True)
            elif word == "ENV":
                self.variables |= variables_of_machine(rest)
            elif word == "COPY":
                self.copy_instruction(flags, rest, contexts, own)
            elif word == "RUN" and not SYSTEM.search(rest):
                done = Host(self.directory, self.variables).run("sh", "-c", rest)
                assert done.status == 0, (rest, done)
            elif word == "CMD":
                return re.findall(r'"([^"]*)"', rest)
        return None

    def copy_instruction(self, flags, rest, contexts, own):
        source, target = rest.split()
        name = flags[0].removeprefix("--from=") if flags else None
        if name and "/" in name:
            return  # an image of somebody else's: uv, which is here
        origin = contexts[name] if name else own
        self.copy(origin / source.lstrip("/"), self.place(target))


def variables_of_machine(rest):
    """An ENV's variables; which Python there is, the machine of the tests says."""
    found = dict(word.split("=", 1) for word in rest.split())
    found.pop("UV_PYTHON", None)
    return found


@pytest.mark.parametrize("name", ["Dockerfile.debian", "Dockerfile.alpine"])
def test_the_commands_build_a_release_that_answers(name, host, pyport, session, variables):
    """From an application with a lock to a directory whose CMD's program evaluates Python."""
    host.uv_init()
    locked = host.mix("py_port.lock")
    assert locked.status == 0, locked
    build, run = stages(DOCKER / name)
    first = Image(session / f"{name}.build", dict(variables))
    first.replay(build, {"pyport": pyport}, host.path)
    second = Image(session / f"{name}.run", dict(variables))
    command = second.replay(run, {"build": first.root}, host.path)
    shutil.rmtree(first.root)
    program = second.place(command[0])
    code = START + 'IO.inspect(PyPort.eval("import dateutil; 6 * 7"))'
    subprocess.run(["chmod", "-R", "a-w", second.root], check=True)
    answer = Host(session, {**second.variables, "RELEASE_TMP": str(session)}).run(
        program, "eval", code
    )
    assert "{:ok, 42}" in answer.said, answer
    subprocess.run(["chmod", "-R", "u+w", second.root], check=True)
    shutil.rmtree(second.root)
