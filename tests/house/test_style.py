"""The settings of editors and formatters agree with each other and with the files."""

import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FOLDERS = (".ci", "benchmarks", "docs", "elixir_client", "notebooks", "port_server")
FOLDERS += ("scripts", "tests")
BUILT = {"_build", "__pycache__", "cover", "deps", "tmp", "wheels"}
TEXT = {".c", ".csv", ".erl", ".ex", ".exs", ".h", ".livemd", ".md", ".py", ".pyi", ".sh", ".svg"}
TEXT |= {".toml", ".txt"}


@cache
def sections():
    """Read .editorconfig: the glob of each section, and its settings."""
    parser = ConfigParser()
    parser.read_string("[file]\n" + (PROJECT / ".editorconfig").read_text())
    return {glob: dict(parser[glob]) for glob in parser.sections()}


def files():
    """Give the sources of the repository: what is built and what is linked is left out."""
    yield from (path for path in PROJECT.iterdir() if path.is_file())
    for folder in FOLDERS:
        for path in (PROJECT / folder).rglob("*"):
            parts = path.relative_to(PROJECT).parts
            linked = any((PROJECT / Path(*parts[: n + 1])).is_symlink() for n in range(len(parts)))
            if path.is_file() and not linked and not BUILT & set(parts):
                yield path


SOURCES = [path for path in files() if path.suffix in TEXT or path.name in ("Makefile", "run")]


def settings_of(path):
    """Merge the sections of .editorconfig that are about a file."""
    merged = {}
    for glob, settings in sections().items():
        inside = re.fullmatch(r"\*\.\{(.*)\}", glob)
        patterns = [f"*.{ending}" for ending in inside[1].split(",")] if inside else [glob]
        if any(path.match(pattern) for pattern in patterns):
            merged |= settings
    return merged


def faults(path):
    """List what a file does against its settings."""
    settings, data = settings_of(path), path.read_bytes()
    lines = data.split(b"\n")
    found = []
    if settings.get("end_of_line") == "lf" and b"\r" in data:
        found.append("a carriage return")
    if settings.get("insert_final_newline") == "true" and data and not data.endswith(b"\n"):
        found.append("no newline at the end")
    trimmed = settings.get("trim_trailing_whitespace") == "true"
    spaces = settings.get("indent_style") == "space"
    for number, line in enumerate(lines, 1):
        if trimmed and line.endswith((b" ", b"\t")):
            found.append(f"a blank at the end of line {number}")
        if spaces and line.startswith(b"\t"):
            found.append(f"a tab at the beginning of line {number}")
    try:
        data.decode(settings.get("charset", "utf-8"))
    except UnicodeDecodeError as error:
        found.append(str(error))
    return found


def test_every_source_is_as_the_editors_are_told():
    """Encoding, ends of lines and of files, and tabs follow .editorconfig."""
    assert len(SOURCES) > 300
    found = {str(path.relative_to(PROJECT)): faults(path) for path in SOURCES}
    assert {path: list_ for path, list_ in found.items() if list_} == {}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"x = 1\r\n", "a carriage return"),
        (b"x = 1", "no newline at the end"),
        (b"x = 1\ny = 2 \n", "a blank at the end of line 2"),
        (b"if x:\n\ty = 2\n", "a tab at the beginning of line 2"),
        (b"x = '\xff'\n", "'utf-8' codec can't decode byte 0xff in position 5: invalid start byte"),
    ],
)
def test_what_differs_is_found(tmp_path, data, fault):
    (tmp_path / "x.py").write_bytes(data)
    assert faults(tmp_path / "x.py") == [fault]


def test_editors_and_formatters_wrap_at_the_same_column():
    """The widths of .editorconfig are those of ruff and mix format."""
    ruff = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    mix = re.search(r"line_length: (\d+)", (PROJECT / "elixir_client/.formatter.exs").read_text())
    widths = {glob: settings.get("max_line_length") for glob, settings in sections().items()}
    assert widths["*.{py,pyi}"] == str(ruff)
    assert widths["*.{ex,exs}"] == mix[1]


def test_the_c_is_as_clang_format_leaves_it():
    """The locked clang-format changes nothing, and `make lint` says so, too."""
    names = [path for path in SOURCES if path.suffix in {".c", ".h"}]
    assert len(names) > 5
    command = [Path(sys.executable).with_name("clang-format"), "--dry-run", "--Werror", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "clang-format --dry-run --Werror" in (PROJECT / "scripts/lint.sh").read_text()
