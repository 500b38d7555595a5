"""Check the prose of files against a few patterns of the style in use here.

`prose.py PATH...` reads comments, docstrings and messages of Python, C and Elixir, comments of
shell scripts, and Markdown without code and headings. It prints `file:line: pattern: text` for each
match and ends with status 1 if there was one. A string of four or more words counts as a message.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import partial
from pathlib import Path

# The beginning of a sentence: of a paragraph, of a list item, or after a full stop.
ITEM = r"(?:[-*]|\d+\.)[ ]"
START = rf'(?:\A|\n[ \t]*\n|\n[ \t]*{ITEM}|[.:!?][)"*_]*\s)\s*(?:{ITEM})?[("*_]*'
PATTERNS = {
    # A subject that is a clause of its own. A question is fine.
    "subject": START + r"((?:What|Who|Whose|Whoever|Whatever|Whichever)\b)(?![^.!?]*\?)",
    # "Where the file is missing, the command fails." is a condition, and fine.
    "where": START + r"(Where\b)(?![^.!?]*[,?])",
    "one that": START + r"(One\s+(?:that|who|which|whose)\b)",
    "indefinite": START + r"(Nothing\b)",
    "person": r"(?i)\b((?:nobody|somebody|whoever|whomever)(?:'s)?)\b",
    "to be had": r"\b(to\s+be\s+had)\b",
    "is there": r"\b((?:is|are|was|were)\s+there)(?=\s*(?:[.,;:)]|\Z))",
    "old name": r"(?i)\b(batons?|lanes?)\b",
}
CHECKS = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}

MESSAGE_WORDS = 4

C_TEXT = re.compile(
    r"""(?P<comment>/\*.*?\*/|//[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"(?:\s*"(?:\\.|[^"\\\n])*")*)
    |'(?:\\.|[^'\\])'""",
    re.DOTALL | re.VERBOSE,
)
ELIXIR_TEXT = re.compile(
    r'''(?P<doc>(?:~[sS])?"""\n.*?\n[ ]*""")
    |\?(?:\\.|.)
    |~[a-zA-Z](?:/(?:\\.|[^/\\\n])*/|"(?:\\.|[^"\\])*"|\((?:\\.|[^)\\])*\)|\[[^\]]*\]|\{[^}]*\})
    |(?P<string>"(?:\\.|\#\{[^{}"]*(?:"[^"]*"[^{}"]*)*\}|[^"\\])*")
    |(?P<comment>\#[^\n]*(?:\n[ \t]*\#[^\n]*)*)''',
    re.DOTALL | re.VERBOSE,
)
SHELL_COMMENT = re.compile(r"(?:^|(?<=\n))[ \t]*#(?!!)[^\n]*(?:\n[ \t]*#[^\n]*)*")

Passage = tuple[int, str]  # the line it begins in, its text


def python(source: str) -> Iterator[Passage]:
    """Comments, docstrings and messages. An f-string is read with a placeholder for each value."""
    yield from python_comments(source)
    inside = set()
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            inside.update(map(id, parts))
            words = [part.value if part in parts else "_" for part in node.values]
            yield from message(node.lineno, "".join(words))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                yield node.lineno, markdown_text(node.value)
            elif id(node) not in inside:
                yield from message(node.lineno, node.value)


def python_comments(source: str) -> Iterator[Passage]:
    """Comments; those of one column in lines that follow each other are one passage."""
    start, last, column, text = 0, 0, 0, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, at = token.start
        if line == last + 1 and at == column:
            text += "\n" + token.string.lstrip("#! ")
        else:
            if text:
                yield start, text
            start, column, text = line, at, token.string.lstrip("#! ")
        last = line
    if text:
        yield start, text


def message(line: int, text: str) -> Iterator[Passage]:
    """A string, if it is long enough to be for people."""
    if len(text.split()) >= MESSAGE_WORDS:
        yield line, text


def matched(pattern: re.Pattern[str], source: str) -> Iterator[Passage]:
    """Comments, messages and docs of a language that `pattern` can tell apart."""
    for match in pattern.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        text = match[0]
        if match.lastgroup == "doc":
            yield line, markdown_text(text[text.index("\n") : -3])
        elif match.lastgroup == "string":
            yield from message(line, re.sub(r'"(\s*)"', r"\1", text)[1:-1])
        elif match.lastgroup == "comment":
            yield line, re.sub(r"^[ \t]*(?:/?\*+/?|//|#+)[ \t]?", "", text, flags=re.MULTILINE)


def shell(source: str) -> Iterator[Passage]:
    """Comments that have lines of their own."""
    for match in SHELL_COMMENT.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        yield line, re.sub(r"^[ \t]*#[ \t]?", "", match[0], flags=re.MULTILINE)


def markdown_text(source: str) -> str:
    """The prose of Markdown, line by line: code and headings are blank."""
    lines = source.split("\n")
    margin = min((indent(line) for line in lines[1:] if line.strip()), default=0)
    prose, fence, code, blank, item = [], "", False, True, False
    for line in lines:
        text = line.strip()
        if mark := re.match(r"`{3,}|~{3,}", text):
            fence = "" if text == fence else fence or mark[0]
            prose.append("")
            continue
        item = re.match(r"([-*]|\d+\.) ", text) is not None or (item and indent(line) > margin)
        code = (blank or code) and not item and bool(text) and indent(line) >= margin + 4
        blank = not text
        prose.append("" if fence or code or text.startswith(("#", "<!--")) else line)
    return "\n".join(prose)


def indent(line: str) -> int:
    """The number of spaces that `line` begins with."""
    return len(line) - len(line.lstrip(" "))


READERS = {
    ".py": python,
    ".pyi": python,
    ".c": partial(matched, C_TEXT),
    ".h": partial(matched, C_TEXT),
    ".ex": partial(matched, ELIXIR_TEXT),
    ".exs": partial(matched, ELIXIR_TEXT),
    ".sh": shell,
    ".md": lambda source: [(1, markdown_text(source))],
}


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name of the pattern, text) of each match in one file."""
    for start, text in READERS[path.suffix](path.read_text(encoding="utf-8")):
        # Code between backquotes is no prose; a placeholder keeps every position.
        prose = re.sub(r"`[^`]*`", lambda code: re.sub(r"[^\n]", "x", code[0]), text)
        for name, check in CHECKS.items():
            for match in check.finditer(prose):
                at = match.start(1)
                line = start + text.count("\n", 0, at)
                yield line, name, " ".join(text[at : at + 70].split())


def files(paths: list[str]) -> Iterator[Path]:
    """The files named, and those under the directories named."""
    for path in map(Path, paths):
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.suffix in READERS)


def main(paths: list[str]) -> int:
    found = [(file, *finding) for file in files(paths) for finding in findings(file)]
    for file, line, name, text in sorted(found):
        print(f"{file}:{line}: {name}: {text}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
