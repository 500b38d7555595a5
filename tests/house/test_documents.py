"""What is held of the documentation as a whole; its blocks are run elsewhere."""

import re
from importlib.metadata import version

import pytest
from markdown import DOCUMENTS, PROJECT, blocks, outside_of_blocks

# Who runs a block without a note: elixir_client/test/documents_test.exs, tests/documents/,
# tests/protocol/test_transcript.py.
RUN = {"elixir", "erlang", "python", "console", "transcript"}
# Shown, not run: what somebody sees, or what stands in a file of another program.
SHOWN = {"text"}

EVERY = [pytest.param(path, id=str(path.relative_to(PROJECT))) for path in DOCUMENTS]


@pytest.mark.parametrize("document", EVERY)
def test_every_block_is_run_or_says_why_not(document):
    """A fence without a language, or in one that nobody runs, is an error."""
    for block in blocks(document):
        known = block.language in RUN | SHOWN or block.note is not None
        assert known, f"{block.place}: nobody runs {block.language or 'a block without a language'}"


@pytest.mark.parametrize("document", EVERY)
def test_no_code_hides_in_indentation(document):
    """An indented block has no language, so nobody could run it."""
    previous, in_list = "", False
    for number, line in outside_of_blocks(document):
        if line and not line.startswith(" "):
            in_list = re.match(r"[*-] |\d+\. |: ", line) is not None
        indented = line.startswith("    ") and not previous.strip() and not in_list
        assert not indented, f"{document.name}:{number}: fence this block: {line.strip()}"
        previous = line


@pytest.mark.parametrize("document", EVERY)
def test_who_is_said_to_run_a_block_exists(document):
    """`run by PATH` names a file of this repository."""
    for block in blocks(document):
        if block.note and block.note.startswith("run by "):
            runner = block.note.removeprefix("run by ").split()[0].rstrip(",")
            assert (PROJECT / runner).is_file(), f"{block.place}: there is no {runner}"


def anchors(document):
    """What GitHub makes of the headings."""
    found = set()
    for _number, line in outside_of_blocks(document):
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(text.replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", EVERY)
def test_every_link_inside_the_repository_leads_somewhere(document):
    """Files and headings that are linked exist."""
    text = "\n".join(line for _number, line in outside_of_blocks(document))
    for target in re.findall(r'(?:\]\(|src="|srcset=")([^)"#\s]*(?:#[^)"\s]*)?)[)"]', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(linked), f"{document.name}: no heading for {target}"


def test_one_version_stands_everywhere():
    """pyproject.toml, mix.exs, the changelog, the lock, and what is installed."""
    declared = {
        "pyproject.toml": r'^version = "(.*)"',
        "uv.lock": r'^name = "port-server"\nversion = "(.*)"',
        "elixir_client/mix.exs": r'@version "(.*)"',
        "CHANGELOG.md": r"^## (\S+)$",  # not what is "(unreleased)"
    }
    versions = {
        file: re.search(pattern, (PROJECT / file).read_text(), re.MULTILINE)[1]
        for file, pattern in declared.items()
    }
    assert set(versions.values()) == {version("port-server")}, versions
