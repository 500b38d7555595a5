"""Imports point down: cli -> server -> runtime, protocol -> etf. Read from the syntax trees."""

import ast
import re
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


def test_the_c_is_for_all_versions_whatever_it_is_built_with():
    """What the headers of later versions make into something that 3.11 does not understand.

    Py_RETURN_NONE and its like count no reference since 3.12; formats with `#` become functions
    that want PY_SSIZE_T_CLEAN in 3.11.
    """
    for path in ROOT.rglob("*.c"):
        text = path.read_text()
        assert "Py_RETURN_" not in text, path
        assert not re.search(
            r'(BuildValue|PyArg_Parse|CallFunction|CallMethod)\w*\([^;]*"[^"\n]*#', text
        ), path
