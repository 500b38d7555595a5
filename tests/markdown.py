"""The fenced blocks of the documentation, as the tests run them.

elixir_client/test/support/markdown.ex reads them the same way.
"""

import re
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [PROJECT / "README.md", *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("notebooks/*.livemd")]
)

# A comment right above a fence says who else runs the block, or why nobody does.
_FENCE = re.compile(
    r"^(?:<!-- (?P<note>(?:not run: |run by )(?:(?!-->).)*) -->\n)?"
    r"```(?P<language>\S*)(?P<rest>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    document: Path
    line: int
    language: str
    code: str
    note: str | None

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(PROJECT)}:{self.line}"


def blocks(document):
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            text.count("\n", 0, found.start("code")) + 1,
            found["language"] + found["rest"],
            found["code"],
            found["note"],
        )
        for found in _FENCE.finditer(text)
    ]


def outside_of_blocks(document):
    """The lines that stand in no block, and their numbers; a block is one empty line."""
    text = document.read_text(encoding="utf-8")
    blank = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    return list(enumerate(blank.splitlines(), 1))
