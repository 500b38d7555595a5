"""Files that hide modules of the standard library are named."""

import subprocess
import sys

import pytest

TRY = """
import sys
sys.path.insert(0, sys.argv[1])
from port_server.runtime import shadows
try:
    exec(sys.argv[2])
except Exception as error:
    shadows.explain(error)
    shadows.explain(error)
    print(*getattr(error, "__notes__", ()), error, sep="\\n")
print("----", *shadows.found(), sep="\\n")
"""


def tried(directory, code):
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(directory), code],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("asyncio.py", "import asyncio; asyncio.new_event_loop()"),
        ("csv.py", "from csv import reader"),
        ("json.py", "import json.decoder"),
        ("email/__init__.py", "import email.mime.text"),
        ("dataclasses.py", "from dataclasses import field"),
    ],
)
def test_the_file_is_named_once_and_the_doctor_finds_it(tmp_path, name, code):
    """In the error that it causes, by our words or, from 3.13 on, by Python's own."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    module = name.split("/")[0].removesuffix(".py")
    error, found = tried(tmp_path, code).split("----")
    note = f"{file} hides Python's own module {module}: rename it"
    assert error.count(note) == 1 or f"consider renaming '{file}'" in error
    place = tmp_path / name.split("/")[0]
    assert found.count(f"{place} hides Python's own module {module}: rename it") == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mine.py", "import mine; mine.nothing"),
        ("test/__init__.py", "import no_such_module"),
        ("csv/data.txt", "import csv; csv.nothing"),  # no package: Python's own is found
        ("sys.py", "import sys; sys.nothing"),  # built in
        ("csv.txt", "import csv; csv.nothing"),
    ],
)
def test_what_hides_nothing_is_not_named(tmp_path, name, code):
    """A file of another name, and one that Python does not take for the module."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    assert "hides" not in tried(tmp_path, code)
