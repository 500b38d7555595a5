"""The Python and shell blocks of the documentation, run as a reader would; Elixir's are ExUnit's.

Blocks of one document run one after the other: Python in one namespace, each command in a shell of
its own, in the root of the project.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown import DOCUMENTS, PROJECT, blocks

CHECKER = doctest.OutputChecker()
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documents_with(language):
    return [
        pytest.param(found, id=found[0].document.name)
        for document in DOCUMENTS
        if (
            found := [
                block
                for block in blocks(document)
                if block.language == language and block.note is None
            ]
        )
    ]


def run(script):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    # `timeout` ends whatever the shell has started, too; subprocess.run ends the shell alone.
    return subprocess.run(
        ["timeout", "60", "sh", "-c", script],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("found", documents_with("python"))
def test_python_blocks_run(found):
    """Those with a prompt are doctests; the others are run."""
    namespace = {"__name__": "__main__"}
    for block in found:
        if ">>>" not in block.code:
            exec(compile("\n" * (block.line - 1) + block.code, block.document, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(
            block.code, namespace, block.document.name, str(block.document), block.line - 1
        )
        report = []
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
        assert not report, "".join(report)
        # What one block defines, the next one knows.
        namespace = test.globs


@pytest.mark.parametrize("found", documents_with("console"))
def test_console_blocks_print_what_they_show(found):
    """Below a command, behind `$`, stands what it prints; `...` is anything."""
    for block in found:
        steps = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
        assert steps[0] == "", f"{block.place} begins with no command"
        for step in steps[1:]:
            command, expected = commanded(step)
            done = run(command)
            # Which of the two comes first where commands are piped is nobody's promise.
            printed = [done.stderr + done.stdout, done.stdout + done.stderr]
            assert any(CHECKER.check_output(expected, text, OPTIONS) for text in printed), (
                f"{block.place}: {command}\nexpected:\n{expected}\ngot:\n{printed[0]}"
            )


def commanded(step):
    """The command goes on for as long as a line ends in a pipe or a backslash."""
    lines = step.splitlines(keepends=True)
    end = 1
    while lines[end - 1].rstrip().endswith(("|", "\\")):
        end += 1
    return "".join(lines[:end]).rstrip(), "".join(lines[end:]).rstrip("\n") + "\n"
