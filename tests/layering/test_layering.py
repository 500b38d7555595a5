"""Imports point down: cli -> server -> runtime, protocol -> etf. Read from the syntax trees."""

import ast
from pathlib import Path

import pytest

import port_server

ROOT = Path(port_server.__file__).parent

# What each part may import of the package, itself aside.
ALLOWED = {
    "etf": set(),
    "settings": set(),
    "log": set(),
    "protocol": {"etf", "settings"},
    "runtime": {"etf", "settings"},
    "server": {"etf", "settings", "protocol", "runtime", "log"},
}


def imports_of(path):
    """Every module of the package that the file imports, at whatever depth of its code."""
    package = ["port_server", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".") for name in names if name.startswith("port_server."))


@pytest.mark.parametrize("part", ALLOWED)
def test_each_part_imports_only_what_is_below_it(part):
    """A part of the server never imports one above it; runtime and protocol never each other."""
    files = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else (ROOT / part).rglob("*.py")
    wrong = {
        f"{path.relative_to(ROOT)} imports {'.'.join(name)}"
        for path in files
        for name in imports_of(path)
        if name[1] not in ALLOWED[part] | {part}
    }
    assert not wrong


def test_every_part_is_known():
    """A new package or module is put into its layer here before it is used."""
    top = {path.stem for path in ROOT.iterdir() if path.suffix == ".py"}
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    above = {name for name in top if name.startswith("cli") or name in {"__init__", "__main__"}}
    assert top | packages == set(ALLOWED) | above


def test_modules_stay_readable():
    """No module of the server grows above 400 lines without a reason at its top."""
    for part in ("protocol", "runtime", "server"):
        for path in (ROOT / part).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_the_c_counts_references_on_all_versions():
    """Built with the headers of 3.12 or later these macros count none, and 3.11 needs it."""
    for path in ROOT.rglob("*.c"):
        assert "Py_RETURN_" not in path.read_text(), path
