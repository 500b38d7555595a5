"""The text of snippets by file name, where Python looks for it: `__loader__` and linecache.

Several snippets of one file (sigils in one Elixir module) are one source here, merged by line.
This module never imports linecache; it fills its cache once other code has imported it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_sources: Final[dict[str, Source]] = {}


class Source:
    """The lines of one file that are known, because a snippet of them was compiled.

    Serves as `__loader__` of the namespaces that its snippets run in: linecache, and with it
    traceback, logging, warnings, inspect and pdb, asks that for lines of files that do not exist.
    """

    __slots__ = ("_entry", "_parts", "file")

    def __init__(self, file: str) -> None:
        self.file = file
        self._parts: dict[int, str] = {}
        self._entry: object = None  # the last entry in the cache of linecache

    def get_source(self, _module: str = "") -> str:
        """Give the file's text; lines that belong to no snippet are empty."""
        return "".join(self.lines())

    def lines(self) -> list[str]:
        """Give the file's lines with their ends."""
        lines: list[str] = []
        for first, text in sorted(self._parts.items()):
            own = [line + "\n" for line in text.split("\n")]
            lines += ["\n"] * (first - 1 + len(own) - len(lines))
            lines[first - 1 : first - 1 + len(own)] = own
        return lines

    def add(self, line: int, text: str) -> None:
        """Take in the snippet that begins at `line`; it replaces an older one there."""
        _sources[self.file] = self
        self._parts[line] = text
        self._entry = None
        self.publish()

    def remove(self, line: int, text: str) -> None:
        """Forget the snippet at `line`, unless another one has taken its place."""
        if self._parts.get(line) == text:
            del self._parts[line]
        if not self._parts and _sources.pop(self.file, None) is not None:
            cache = _linecache()
            if cache is not None:
                cache.pop(self.file, None)

    def publish(self) -> None:
        """Put the lines where linecache, if it is imported, finds them first.

        Before the file on the disk: an Elixir heredoc is indented there, and the markers under a
        source line would be off.
        """
        cache = _linecache()
        if cache is None:
            return
        # Skip an entry that is still in the cache: 1,000 sources would cost every failure 8 ms.
        if self._entry is not None and cache.get(self.file) is self._entry:
            return
        lines = self.lines()
        size = sum(map(len, lines))
        # No modification time: linecache never checks such an entry against the disk.
        self._entry = cache[self.file] = (size, None, lines, self.file)


def source_of(file: str) -> Source:
    """Give the source of that name; a new one is registered when a snippet is added."""
    return _sources.get(file) or Source(file)


def is_source(file: str) -> bool:
    """Tell whether snippets of a file of that name are known."""
    return file in _sources


def file_of_class(kind: type) -> str | None:
    """Give the file of a class that a snippet has defined: of its functions, else the newest one.

    None if no snippet that is known has it.
    """
    for value in vars(kind).values():
        code = getattr(value, "__code__", None)
        if code is not None and code.co_filename in _sources:
            return str(code.co_filename)
    statement = "class " + kind.__name__
    for file, source in reversed(list(_sources.items())):
        for line in source.lines():
            text = line.lstrip()
            if text.startswith(statement) and not text[len(statement)].isidentifier():
                return file
    return None


def prepare(linecache: Any) -> None:
    """Put all sources into linecache, which has just been imported.

    From 3.13 on Python puts the text of `python -c` there, as the lines of `<string>`: the server's
    first line would be shown as the source of what user code runs by exec().
    """
    linecache.cache.pop("<string>", None)
    getattr(linecache, "_interactive_cache", {}).clear()
    publish_all()


def publish_all() -> None:
    """Put all sources into linecache, if it is imported."""
    if _linecache() is not None:
        for source in list(_sources.values()):
            source.publish()


def _linecache() -> dict[str, Any] | None:
    """Give the cache of linecache; None before its import has made it."""
    return getattr(sys.modules.get("linecache"), "cache", None)
