"""Erlang term text -> plain terms, as `file:consult` reads it. No I/O.

Text comes in pieces and terms come out as soon as their full stop has been read; the plain terms
are those of `verbatim`.
"""

from __future__ import annotations

import re
from typing import NoReturn

from port_server.etf.terms import MAX_ATOM_CHARACTERS
from port_server.etf.text.assembly import Assembly, Token, Unexpected
from port_server.etf.text.erlang import LETTERS_LOW, LETTERS_UP, RESERVED, quoted
from port_server.etf.text.verbatim import Name, Plain

EXCERPT_CHARS = 160  # how much of the line before an error is kept to be shown with it

_REST = f"[{LETTERS_LOW}{LETTERS_UP}0-9_@]*"
_BARE_ATOM = re.compile(f"[{LETTERS_LOW}]{_REST}")
_VARIABLE = re.compile(f"[{LETTERS_UP}_]{_REST}")
_SPACE = re.compile(r"[\x00-\x20\x7f-\xa0]+")
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_NUMBER = re.compile(
    rf"({_DIGITS})(?:\#([0-9a-zA-Z]+(?:_[0-9a-zA-Z]+)*)|\.({_DIGITS})(?:[eE]([+-]?{_DIGITS}))?)?"
)
_NUMBER_MAY_GO_ON = re.compile(r"[._#eE]?[+-]?\Z")
# `\^C` is one escape even if C is a backslash; the last branch waits for C.
_QUOTED_RUN = {
    mark: re.compile(rf"(?:[^{mark}\\]++|\\[^^]|\\\^[@-\x7f]|\\\^(?=[^@-\x7f]))*+", re.DOTALL)
    for mark in ('"', "'")
}
_MAP_OPENS = re.compile(r"#[\x00-\x20\x7f-\xa0]*(\{?)")
_ESCAPE = re.compile(
    r"\\(?:x\{([0-9a-fA-F]+)\}|x([0-9a-fA-F]{2})|([0-7]{1,3})|\^([@-\x7f])|(.))", re.DOTALL
)
_SIMPLE_ESCAPES = dict(zip("ntrbdefsv", "\n\t\r\b\x7f\x1b\f \v", strict=True))
_PUNCTUATION = ("<<", ">>", "=>", ":=", *"[]{},|/:-+")


class TextError(ValueError):
    """Text that is no Erlang term.

    Attributes:
        line, column: where, both from 1, the column in characters.
        reason: what was expected and what was found.
        excerpt: the line up to what was found, as far as it is still known.
    """

    def __init__(self, line: int, column: int, reason: str, excerpt: str) -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.line = line
        self.column = column
        self.reason = reason
        self.excerpt = excerpt


class _Incomplete(Exception):  # noqa: N818 - no error: the rest of the token has not come yet
    pass


class TermReader:
    """Takes text, returns terms; after an error it goes on behind the next full stop."""

    def __init__(self) -> None:
        self._buffer = ""
        self._pos = 0
        self._scanned = 0  # how far an unfinished quoted token has been scanned
        self._line, self._line_start = 1, 0
        self._closed = False
        self._skipping = False
        self._assembly = Assembly()

    def feed(self, text: str) -> None:
        """Take the next piece of text."""
        cut = max(min(self._line_start, self._pos), self._pos - EXCERPT_CHARS)
        self._buffer = self._buffer[cut:] + text
        self._pos -= cut
        self._line_start -= cut  # may become negative: columns still come out right
        self._scanned = max(0, self._scanned - cut)

    def close(self) -> None:
        """Say that no more text will come."""
        self._closed = True

    def next_term(self) -> Plain | None:
        """The next whole term, or None where more text must come first (or all has been read).

        Raises:
            TextError: the text is no term. The next call goes on behind the next full stop.
        """
        while True:
            try:
                token = self._token()
            except _Incomplete:
                return None
            except TextError:
                if self._skipping:
                    continue
                self._skipping, self._assembly = True, Assembly()
                raise
            if self._skipping:
                if token.kind == "end":
                    return None
                self._skipping = token.kind != "dot"
                continue
            if token.kind == "end" and self._assembly.empty:
                return None
            try:
                done = self._assembly.take(token)
            except Unexpected as unexpected:
                self._assembly = Assembly()
                self._skipping = token.kind != "dot"
                self._fail(str(unexpected), token.line, token.column)
            if done:
                term, self._assembly = self._assembly.result, Assembly()
                return term

    def _fail(self, reason: str, line: int, column: int) -> NoReturn:
        start = max(0, self._line_start)
        end = self._buffer.find("\n", start)
        excerpt = ""
        if line == self._line and self._line_start >= 0:
            stop = len(self._buffer) if end < 0 else end
            excerpt = self._buffer[start : min(stop, start + column + EXCERPT_CHARS // 2)]
        raise TextError(line, column, reason, excerpt)

    def _advance(self, end: int) -> None:
        newlines = self._buffer.count("\n", self._pos, end)
        if newlines:
            self._line += newlines
            self._line_start = self._buffer.rindex("\n", self._pos, end) + 1
        self._pos = self._scanned = end

    def _token(self) -> Token:
        self._skip_blanks()
        buffer, pos = self._buffer, self._pos
        line, column = self._line, pos - self._line_start + 1
        if pos == len(buffer):
            if self._closed:
                return Token("end", None, "the end of the input", line, column)
            raise _Incomplete
        char = buffer[pos]
        if char in _QUOTED_RUN:
            return self._quoted(char, line, column)
        if char == "." and self._ends_a_term(pos + 1):
            self._advance(pos + 1)
            return Token("dot", None, "a full stop", line, column)
        if char == "$":
            return self._char(line, column)
        match = _NUMBER.match(buffer, pos)
        if match:
            return self._number(match, line, column)
        match = _BARE_ATOM.match(buffer, pos) or _VARIABLE.match(buffer, pos)
        if match:
            if match.end() == len(buffer) and not self._closed:
                raise _Incomplete
            word = match[0]
            self._advance(match.end())
            if match.re is _VARIABLE:
                reason = f"expected a term, found the variable {word} (an atom: '{word}')"
                self._fail(reason, line, column)
            self._check_atom(word, line, column)
            if word in RESERVED:
                self._fail(f"{word} is a reserved word; as an atom it is '{word}'", line, column)
            return Token("atom", Name(word), word, line, column)
        match = _MAP_OPENS.match(buffer, pos)
        if match:
            if match[1]:
                self._advance(match.end())
                return Token("#{", None, "`#{`", line, column)
            if match.end() == len(buffer) and not self._closed:
                raise _Incomplete
        for mark in _PUNCTUATION:
            if buffer.startswith(mark, pos):
                if mark == ":" and pos + 1 == len(buffer) and not self._closed:
                    raise _Incomplete
                self._advance(pos + len(mark))
                return Token(mark, None, f"`{mark}`", line, column)
        if char in "<>=" and pos + 1 == len(buffer) and not self._closed:
            raise _Incomplete
        self._advance(pos + 1)
        hint = _hint(char, buffer[pos + 1 : pos + 2])
        return self._fail(f"expected a term, found `{char}`{hint}", line, column)

    def _skip_blanks(self) -> None:
        while True:
            match = _SPACE.match(self._buffer, self._pos)
            if match:
                self._advance(match.end())
            if self._buffer[self._pos : self._pos + 1] != "%":
                return
            end = self._buffer.find("\n", self._pos)
            if end < 0 and not self._closed:
                raise _Incomplete
            elixir_map = self._buffer.startswith("%{", self._pos) and not self._assembly.empty
            line, column = self._line, self._pos - self._line_start + 1
            self._advance(end if end >= 0 else len(self._buffer))
            if elixir_map and not self._skipping:
                reason = "`%{` begins a comment here; an Erlang map is `#{key => value}`"
                self._fail(reason, line, column)

    def _ends_a_term(self, after: int) -> bool:
        following = self._buffer[after : after + 1]
        if not following and not self._closed:
            raise _Incomplete
        return not following or following == "%" or _SPACE.match(following) is not None

    def _quoted(self, quote: str, line: int, column: int) -> Token:
        body = self._pos + 1
        match = _QUOTED_RUN[quote].match(self._buffer, max(body, self._scanned))
        assert match is not None
        end = match.end()
        if self._buffer[end : end + 1] != quote:
            self._scanned = end
            if not self._closed:
                raise _Incomplete
            self._advance(len(self._buffer))
            self._fail(f"this {quote} is never closed", line, column)
        raw = self._buffer[body:end]
        text = self._unescape(raw, line, column) if "\\" in raw else raw
        self._advance(end + 1)
        if quote == '"':
            return Token("string", text, "a string", line, column)
        self._check_atom(text, line, column)
        return Token("atom", Name(text), quoted(text), line, column)

    def _check_atom(self, text: str, line: int, column: int) -> None:
        if len(text) > MAX_ATOM_CHARACTERS:
            self._fail(f"an atom has at most {MAX_ATOM_CHARACTERS} characters", line, column)

    def _unescape(self, raw: str, line: int, column: int) -> str:
        try:
            return _ESCAPE.sub(_escaped, raw)
        except (ValueError, OverflowError):
            self._advance(self._pos + len(raw) + 2)
            return self._fail("an escape in this text is no character", line, column)

    def _char(self, line: int, column: int) -> Token:
        pos = self._pos + 1
        if self._buffer[pos : pos + 1] != "\\":
            if pos == len(self._buffer):
                if not self._closed:
                    raise _Incomplete
                self._advance(pos)
                self._fail("expected a character after `$`", line, column)
            value, end = self._buffer[pos], pos + 1
        else:
            match = _ESCAPE.match(self._buffer, pos)
            if not self._closed and (match is None or match.end() == len(self._buffer)):
                raise _Incomplete
            if match is None:
                self._advance(pos + 1)
                self._fail("expected a character after `$`", line, column)
            end = match.end()
            value = self._unescape(match[0], line, column)
        self._advance(end)
        return Token("int", ord(value), f"${value}", line, column)

    def _number(self, match: re.Match[str], line: int, column: int) -> Token:
        if not self._closed and _NUMBER_MAY_GO_ON.match(self._buffer, match.end()):
            raise _Incomplete
        self._advance(match.end())
        whole, based, fraction, _exponent = match.groups()
        shown = match[0] if len(match[0]) <= 40 else match[0][:37] + "..."
        if fraction is not None:
            value = float(match[0].replace("_", ""))
            if value in (float("inf"), float("-inf")):
                self._fail(f"{shown} is beyond the range of a float", line, column)
            return Token("float", value, shown, line, column)
        base = 10
        if based is not None:
            base = int(whole.replace("_", ""))
            if not 2 <= base <= 36:
                self._fail(f"{shown}: a base is between 2 and 36", line, column)
        try:
            return Token("int", _to_int(based or whole, base), shown, line, column)
        except ValueError:
            return self._fail(f"{shown} has digits that base {base} lacks", line, column)


def _to_int(digits: str, base: int) -> int:
    """`int()` without Python's limit of 4,300 digits."""
    digits = digits.replace("_", "")
    if base in (2, 4, 8, 16, 32) or len(digits) <= 4000:  # Python limits the other bases only
        return int(digits, base)
    half = len(digits) // 2
    power: int = base**half
    return _to_int(digits[:-half], base) * power + _to_int(digits[-half:], base)


def _escaped(match: re.Match[str]) -> str:
    braced, two, octal, control, char = match.groups()
    if braced or two:
        code = int(braced or two, 16)
        if 0xD800 <= code <= 0xDFFF:
            raise ValueError(code)
        return chr(code)
    if octal:
        return chr(int(octal, 8))
    if control:
        return chr(ord(control) & 31)
    if char in "x^":
        raise ValueError(char)
    return _SIMPLE_ESCAPES.get(char, char)


def _hint(char: str, following: str) -> str:
    if char == "<" and following.isdigit():
        return " (a pid cannot be written as text)"
    if char == ".":
        return " (a full stop has white space behind it)"
    if char == "#":
        return " (a map is `#{key => value}`; references and funs cannot be written as text)"
    if char == "~":
        return ' (a binary is <<"text">> or <<"text"/utf8>>)'
    return ""


def parse(text: str) -> Plain:
    """The one term that `text` is; the full stop may be left out.

    Raises:
        TextError: no term, or more than one.
    """
    reader = TermReader()
    reader.feed(text + "\n")
    term = reader.next_term()
    if term is None:
        reader.feed(".\n")  # the full stop that was left out
        term = reader.next_term()
    reader.close()
    if term is None:
        raise TextError(1, 1, "expected a term, found an open quote", text)
    if reader.next_term() is not None:
        raise TextError(1, 1, "expected one term, found several", text)
    return term
