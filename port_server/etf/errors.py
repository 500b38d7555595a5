"""The exceptions of the codec: each names the path to the bad value.

No I/O, and independent of the format: the codecs give the failure and its path, this module makes
the message.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# A path must be readable: a long key is cut at its end, a cycle 500 levels deep in its middle.
LONGEST_KEY = 60  # characters
LONGEST_PATH = 40  # steps


def show(value: object) -> str:
    """Show `value` as in Elixir and Python: `:a` for an atom, `"a"` for a string, else its repr."""
    try:
        if isinstance(value, str):
            is_atom = type(value).__name__ == "Atom"
            text = ":" + str(value) if is_atom else _quoted(str(value))
        else:
            text = repr(value)
    except Exception:
        text = f"<unprintable {type(value).__name__}>"
    if len(text) > LONGEST_KEY:
        text = text[: LONGEST_KEY - 1] + "…"
    return text


def _quoted(text: str) -> str:
    if len(text) > LONGEST_KEY:
        text = text[:LONGEST_KEY] + "…"
    body = repr(text)[1:-1]
    if repr(text)[0] == "'":
        body = body.replace('"', '\\"').replace("\\'", "'")
    return f'"{body}"'


def path_of(steps: Sequence[object]) -> str:
    """Spell steps below the root: a list index or a key becomes `[17]`, `["name"]`.

    An atom key is spelt like the string it equals, because that is how Python finds it.
    """
    spelt = [f"[{show(str(step) if isinstance(step, str) else step)}]" for step in steps]
    if len(spelt) > LONGEST_PATH:
        half = LONGEST_PATH // 2
        spelt[half:-half] = ["[…]"]
    return "".join(spelt)


class _Key:
    """The step of a path that leads into a key itself."""

    def __repr__(self) -> str:
        return "(a key)"


KEY = _Key()


class EtfError(ValueError):
    """A value that could not cross.

    Attributes:
        reason: one sentence without the path, no full stop.
        remedy: what to do about it; may be empty.
        root: the name put in front of the path by `at`; empty until then.
    """

    def __init__(self, reason: str, remedy: str = "", *, path: str = "", root: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.root = root
        self._path = path

    @property
    def path(self) -> str:
        """The place of the bad value, e.g. `globals["rows"][17]["name"]`; empty for the root."""
        return self.root + self._path

    def at(self, root: str) -> Self:
        """Put a root's name (`globals`) in front of the path; returns this same error."""
        self.root = root + self.root
        return self

    def below(self, path: str) -> Self:
        """Put a path (`["rows"][17]`) in front of this one: the caller stands that deep."""
        self._path = path + self._path
        return self

    def __str__(self) -> str:
        text = f"{self.path}: {self.reason}" if self.path else self.reason
        return f"{text}. {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self.reason, self.remedy, self._path, self.root))


class DecodeError(EtfError):
    """Bytes that are no term, or a term that has no faithful Python value.

    Attributes:
        offset: the byte in the buffer where the offending term begins, or None.
    """

    offset: int | None = None


class EncodeError(EtfError):
    """A Python value that has no term, or whose term would be too deep or too large."""


def _restore(kind: type[EtfError], reason: str, remedy: str, path: str, root: str) -> EtfError:
    return kind(reason, remedy, path=path, root=root)


def decode_error(
    reason: str, remedy: str, steps: list[object], offset: int | None = None
) -> DecodeError:
    """Build the error for `steps`, which a codec collected from the bad value up to the root."""
    error = DecodeError(reason, remedy, path=path_of(steps[::-1]))
    error.offset = offset
    return error


def encode_error(reason: str, remedy: str, steps: list[object]) -> EncodeError:
    """Build the error for `steps`, which a codec collected from the bad value up to the root."""
    return EncodeError(reason, remedy, path=path_of(steps[::-1]))


def hook_failed(what: str, error: Exception) -> tuple[str, str]:
    """Say, as reason and remedy, that a conversion of a `what` raised `error`."""
    if isinstance(error, EtfError):
        return error.reason, error.remedy
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    return f"a {what.removeprefix('Elixir.')} could not be converted: {text}", ""
