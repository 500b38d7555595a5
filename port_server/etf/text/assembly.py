"""Tokens of Erlang term text -> one plain term: the grammar, a token at a time. Pure.

The first token that is not allowed at its place is refused at once, before the rest has been read.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from port_server.etf.text.bits import Segment, SegmentError, pack
from port_server.etf.text.erlang import format_erlang
from port_server.etf.text.verbatim import Improper, Pairs, Plain, write


class Token(NamedTuple):
    kind: str  # "atom" | "int" | "float" | "string" | "dot" | "end", or the punctuation itself
    value: Any
    shown: str  # as an error message names it
    line: int
    column: int


class Unexpected(Exception):  # noqa: N818 - becomes a TextError where the position is known
    pass


# The token that each state expects, in the words of the error message.
_EXPECTED = {
    "term": "a term",
    "first": "a term or `{closer}`",
    "after": "`,` or `{closer}`",
    "after item": "`,`, `|` or `]`",
    "tail": "the tail of the list",
    "after tail": "`]`",
    "arrow": "`=>` and the value of this key",
    "value": "a value after `=>`",
    "done": "a full stop `.` (a dot, then white space)",
    "number": "a number after the sign",
    "segment": "a number or a string, as binaries hold them",
    "first segment": "a number, a string or `>>`",
    "after segment": "`,`, `:`, `/` or `>>`",
    "size": "a size in units",
    "after size": "`,`, `/` or `>>`",
    "type": "a type, such as `utf8` or `little`",
    "after type": "`,`, `-` or `>>`",
    "unit": "`:` and a number of bits",
    "unit number": "a number of bits",
}
_CLOSERS = {"{": "}", "[": "]", "#{": "}", "<<": ">>"}
_TERM_WANTED = frozenset(("term", "first", "tail", "value"))
_SEGMENT_WANTED = frozenset(("segment", "first segment"))


class _Open:
    """A container that has begun and not ended; the bottom one is the term as a whole."""

    __slots__ = ("column", "keys", "kind", "line", "parts", "state", "tail")

    def __init__(self, kind: str, state: str, line: int, column: int) -> None:
        self.kind, self.state = kind, state
        self.line, self.column = line, column
        self.parts: list[Any] = []
        self.keys: set[bytes] = set()
        self.tail: Plain = []


class Assembly:
    """Builds one term out of tokens; refuses the first token that is not allowed at its place."""

    def __init__(self) -> None:
        self._stack = [_Open("term", "term", 1, 1)]
        self._sign: str | None = None
        self._string: list[str] = []  # strings side by side are one
        self.empty = True
        self.result: Plain = None

    def take(self, token: Token) -> bool:
        """Take a token; True once the term is whole."""
        self.empty = False
        kind, top = token.kind, self._stack[-1]
        if kind == "string" and self._sign is None:
            if self._string or top.state in _TERM_WANTED or top.state in _SEGMENT_WANTED:
                self._string.append(token.value)
                return False
            self._refuse(token)
        if self._string:
            text, self._string = "".join(self._string), []
            if top.state in _SEGMENT_WANTED:
                top.parts.append(Segment(text))
                top.state = "after segment"
            else:
                self._add([ord(char) for char in text])
                top = self._stack[-1]
        if top.state in _TERM_WANTED:
            self._term(token)
        elif top.kind == "<<":
            self._binary(token)
        elif kind == "dot" and top.state == "done":
            return True
        elif kind == _CLOSERS.get(top.kind) and top.state.startswith("after"):
            self._close()
        elif kind == "," and top.state in ("after", "after item"):
            top.state = "term"
        elif kind == "|" and top.state == "after item":
            top.state = "tail"
        elif kind == "=>" and top.state == "arrow":
            top.state = "value"
        else:
            self._refuse(token)
        return False

    def _refuse(self, token: Token) -> NoReturn:
        top = self._stack[-1]
        state = "number" if self._sign is not None else top.state
        closer = _CLOSERS.get(top.kind, "")
        text = f"expected {_EXPECTED[state].format(closer=closer)}, found {token.shown}"
        if token.kind in ("dot", "end") and top.kind != "term":
            text += f" (the `{top.kind}` of line {top.line}, column {top.column} is still open)"
        if token.kind == ":" and state in _TERM_WANTED:
            text += " (an Erlang atom has no colon in front)"
        if token.kind == ":=":
            text += " (that is for patterns; a map is `#{key => value}`)"
        raise Unexpected(text)

    def _term(self, token: Token) -> None:
        kind, top = token.kind, self._stack[-1]
        if self._sign is not None:
            if kind not in ("int", "float"):
                self._refuse(token)
            negative, self._sign = self._sign == "-", None
            self._add(-token.value if negative else token.value)
        elif kind in ("atom", "int", "float"):
            self._add(token.value)
        elif kind in ("-", "+"):
            self._sign = kind
        elif kind in _CLOSERS:
            state = "first segment" if kind == "<<" else "first"
            self._stack.append(_Open(kind, state, token.line, token.column))
        elif kind == _CLOSERS.get(top.kind) and top.state == "first":
            self._close()
        else:
            self._refuse(token)

    def _add(self, value: Plain) -> None:
        top = self._stack[-1]
        if top.state == "tail":
            top.tail, top.state = value, "after tail"
        elif top.kind == "[":
            top.parts.append(value)
            top.state = "after item"
        elif top.kind == "#{" and top.state != "value":
            key = write(value)
            if key in top.keys:
                raise Unexpected(f"the key {format_erlang(value)} stands in this map already")
            top.keys.add(key)
            top.parts.append(value)
            top.state = "arrow"
        elif top.kind == "term":
            self.result, top.state = value, "done"
        else:
            top.parts.append(value)
            top.state = "after"

    def _close(self) -> None:
        top = self._stack.pop()
        parts = top.parts
        if top.kind == "{":
            self._add(tuple(parts))
        elif top.kind == "#{":
            self._add(Pairs(zip(parts[::2], parts[1::2], strict=True)))
        elif top.kind == "<<":
            try:
                self._add(pack(parts))
            except SegmentError as error:
                raise Unexpected(str(error)) from None
        elif type(top.tail) is list:
            self._add(parts + top.tail)
        elif type(top.tail) is Improper:
            self._add(Improper(parts + top.tail.items, top.tail.tail))
        else:
            self._add(Improper(parts, top.tail))

    def _binary(self, token: Token) -> None:
        kind, top = token.kind, self._stack[-1]
        state, parts = top.state, top.parts
        if state in _SEGMENT_WANTED:
            if kind in ("int", "float"):
                negative, self._sign = self._sign == "-", None
                parts.append(Segment(-token.value if negative else token.value))
                top.state = "after segment"
                return
            if kind in ("-", "+") and self._sign is None:
                self._sign = kind
                return
            if kind != ">>" or state == "segment" or self._sign is not None:
                self._refuse(token)
        if state == "size" and kind == "int":
            parts[-1].size, top.state = token.value, "after size"
        elif state == "type" and kind == "atom":
            parts[-1].types.append(str(token.value))
            top.state = "unit" if token.value == "unit" else "after type"
        elif state == "unit" and kind == ":":
            top.state = "unit number"
        elif state == "unit number" and kind == "int":
            parts[-1].unit, top.state = token.value, "after type"
        elif kind == ">>" and (state.startswith("after") or state == "first segment"):
            self._close()
        elif kind == "," and state.startswith("after"):
            top.state = "segment"
        elif kind == ":" and state == "after segment":
            top.state = "size"
        elif (kind == "-" and state == "after type") or (
            kind == "/" and state in ("after segment", "after size")
        ):
            top.state = "type"
        else:
            self._refuse(token)
