"""scripts/prose.py finds the patterns in prose, at their lines, and leaves code alone."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/prose.py"

FOUND = {
    "comment.py": ("x = 1\n# First.\n# Then more. What follows\n# is bad.\n", "3: subject"),
    "docstring.py": ('def f():\n    """Do it.\n\n    Who asks waits.\n    """\n', "4: subject"),
    "raise.py": (
        'def f(x):\n    raise ValueError(f"{x!r} is read, but nobody asks")\n',
        "2: person",
    ),
    "block.c": ("int x;\n/* Kept. One that\n   ends is freed. */\n", "2: one that"),
    "string.c": ('char *s = "a reply is read "\n  "by whoever asks";\n', "2: person"),
    "doc.ex": ('@doc """\nRuns it.\n\nNothing is kept.\n"""\n', "4: indefinite"),
    "log.ex": ('Logger.warning("#{f("x")} is idle, somebody waits")\n', "1: person"),
    "comment.ex": ('x = ?"\n# The file that is to be had.\n', "2: to be had"),
    "where.md": ("Where it stands is told by the log.\n", "1: where"),
    "is_there.md": ("* It fails if the file\n  is there.\n", "2: is there"),
    "item.md": ("A list:\n\n* **What is printed** goes to stdout.\n", "3: subject"),
    "old.md": ("Waits for the baton.\n", "1: old name"),
    "comment.sh": ("#!/bin/sh\n# Whose it is.\n", "2: subject"),
}
CLEAN = {
    "question.md": "What is a port? A pair of pipes.\n",
    "condition.md": "Where the file is missing, the command fails.\n",
    "fence.md": "Run this:\n\n```python\n# What it prints is nobody's.\n```\n",
    "indented.md": "Run this:\n\n    x = 1\n    # Nothing is lost.\n",
    "code.md": "The module `nobody` has a function. There are three.\n",
    "clause.md": "It prints what is read, and who reads it.\n",
    "short.py": 'names = ["What", "nobody", "baton"]\n',
    "sigil.ex": 'x = ~r/nobody to be had here/\ny = ?"\nz = ?"\n',
    "table.md": "| What | Who |\n| --- | --- |\n| this | that |\n",
}


def run(folder, files):
    for name, text in files.items():
        (folder / name).write_text(text)
    return subprocess.run(
        [sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The printed lines, for all files of the first table."""
    folder = tmp_path_factory.mktemp("found")
    done = run(folder, {name: text for name, (text, _place) in FOUND.items()})
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize("name", FOUND)
def test_a_match_is_reported_with_its_line_and_pattern(report, name):
    matches = [line.split(": ")[:2] for line in report if line.startswith(f"{name}:")]
    assert [": ".join(match) for match in matches] == [f"{name}:{FOUND[name][1]}"]


def test_code_questions_and_conditions_are_no_match(tmp_path):
    done = run(tmp_path, CLEAN)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
