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
    "cli": {"etf", "settings", "protocol", "runtime", "log", "server"},
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


def test_only_the_command_line_imports_terms_as_text():
    """`port_server.etf.text` is for people; no server and no user of the codec loads it."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {'.'.join(name)}"
        for path in ROOT.rglob("*.py")
        if path.parent not in {ROOT / "cli", ROOT / "etf" / "text"}
        for name in imports_of(path)
        if name[1:3] == ["etf", "text"]
    }
    assert not wrong


def test_every_part_is_known():
    """A new package or module is put into its layer here before it is used."""
    top = {path.stem for path in ROOT.iterdir() if path.suffix == ".py"}
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert top | packages == {*ALLOWED, "__init__", "__main__"}


# Objects without behaviour of their own, whose attributes those set who work on them: a request and
# what belongs to it, and what Python and its library have.
DATA = {"request", "call", "stream", "parked.stream", "state", "self._tasks[request.id_term]"}
DATA |= {"error", "second", "frame", "importer", "function", "signal"}


def targets_of(node):
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    else:
        return
    for target in targets:
        yield from target.elts if isinstance(target, ast.Tuple) else [target]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "server").rglob("*.py")), ids=lambda path: path.stem
)
def test_no_object_of_the_server_is_changed_by_another_one(path):
    """It gets what it needs when `app.py` builds it; only its own methods set its attributes."""
    wrong = {
        f"line {node.lineno}: {ast.unparse(target)}"
        for node in ast.walk(ast.parse(path.read_text()))
        for target in targets_of(node)
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in DATA | {"self"}
    }
    assert not wrong


def classes_of(path):
    """Give the classes of a file, and for each the classes that it inherits from."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, {ast.unparse(base) for base in node.bases}


def test_no_class_of_the_server_inherits_from_another_one():
    """Inheritance would only split a file there. Exceptions are what they are caught as."""
    classes = dict(each for path in (ROOT / "server").rglob("*.py") for each in classes_of(path))
    assert {name: bases for name, bases in classes.items() if bases - {"Exception"}} == {}


def imports_at_start(path):
    """Every module of the package that is imported as soon as the file is."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    package = ["port_server", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def test_imports_make_no_cycle():
    """Any module can be read after those that it imports."""
    modules = {
        ".".join(["port_server", *path.relative_to(ROOT).with_suffix("").parts]): path
        for part in ("protocol", "runtime", "server")
        for path in (ROOT / part).rglob("*.py")
        if path.stem != "__init__"
    }
    arrows = {name: set(imports_at_start(path)) & modules.keys() for name, path in modules.items()}
    while leaves := {name for name, below in arrows.items() if not below}:
        arrows = {name: below - leaves for name, below in arrows.items() if name not in leaves}
    assert arrows == {}


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
    for path in ROOT.rglob("*.[ch]"):
        text = path.read_text()
        assert "Py_RETURN_" not in text, path
        assert not re.search(
            r'(BuildValue|PyArg_Parse|CallFunction|CallMethod)\w*\([^;]*"[^"\n]*#', text
        ), path
