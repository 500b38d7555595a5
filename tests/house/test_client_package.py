"""What the client carries of the port server, to install it into environments."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "elixir_client/priv/package"


def test_its_requirements_are_the_ones_that_were_tested():
    """Versions and hashes are those of uv.lock, for all that the server needs and nothing else."""
    lock = tomllib.loads((PROJECT / "uv.lock").read_text())
    packages = {package["name"]: package for package in lock["package"]}
    wanted, found = {}, {}
    queue = [entry["name"] for entry in packages["port-server"]["dependencies"]]
    while queue:
        package = packages[queue.pop()]
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        name = f"{package['name']}=={package['version']}"
        wanted[name] = {file["hash"] for file in files}
        queue += [entry["name"] for entry in package.get("dependencies", [])]
    for entry in re.split(r"\n(?=\w)", (PACKAGE / "requirements.txt").read_text()):
        words = entry.replace("\\", " ").split()
        found[words[0]] = {word.removeprefix("--hash=") for word in words[1:]}
    assert found == wanted, (
        "uv export --frozen --no-dev --no-emit-project --no-header --no-annotate"
        " -o elixir_client/priv/package/requirements.txt"
    )


def test_what_it_is_built_from_is_the_repositorys_own():
    """Links, so that there is one source."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        assert (PACKAGE / name).resolve() == PROJECT / name
    assert (PACKAGE.parent / "python/port_server").resolve() == PROJECT / "port_server"
