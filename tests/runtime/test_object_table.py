"""The table behind handles, without a server around it."""

import gc
import re
from collections import deque
from functools import partial
from types import MethodType, ModuleType

import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct
from port_server.etf import fallback as codec
from port_server.runtime.objects import LONGEST_REPR, MODULE, Exports, Objects, describe, shown
from port_server.settings import Settings


class Thing:
    """Something without a term."""


@pytest.fixture
def objects():
    return Objects(Settings().replace(max_objects=5), None, "token")


def test_a_handle_has_its_fields_as_atoms(objects):
    """As `%PyPort.Object{}` has them."""
    number, handle = objects.add(Thing())
    assert (type(handle), handle.module, handle["id"]) == (Struct, MODULE, number)
    assert {type(key) for key in handle} == {Atom}


def test_what_was_added_is_found_until_it_is_released(objects):
    """Under its id, by its token, once."""
    thing = Thing()
    number, handle = objects.add(thing)
    assert objects.find(dict(handle)) is thing
    assert objects.find({**handle, "token": b"token"}) is thing
    objects.release([number, number, 12345])
    with pytest.raises(DecodeError, match=r"the object 1 \(.*Thing\) was released"):
        objects.find(dict(handle))
    assert len(objects) == 0


def test_releasing_runs_no_code_and_dropping_does(objects):
    """So that a thread which must not be held up may release."""
    seen = []

    class Noisy:
        def __del__(self):
            seen.append(1)

    number, _handle = objects.add(Noisy())
    objects.release([number])
    gc.collect()
    assert seen == []
    objects.drop()
    assert seen == [1]


def test_an_encoding_that_fails_leaves_nothing(objects):
    """The ids it was given are taken back."""
    exports = Exports(objects, ("object", "object"))
    for _ in range(3):
        with pytest.raises(EncodeError):
            codec.encode([Thing(), "\ud800"], default=exports.export)
        assert len(objects) == len(exports.ids) == 1
        exports.undo()
        assert len(objects) == len(exports.ids) == 0


def test_the_limit_names_itself(objects):
    """And what to do."""
    for _ in range(5):
        objects.add(Thing())
    with pytest.raises(EncodeError, match=r"max_objects") as caught:
        objects.add(Thing())
    assert "Release" in caught.value.remedy
    assert len(objects) == 5


@pytest.mark.parametrize("token", ["", "text", b"bytes", b"\xff"])
def test_tokens_are_text_or_bytes(token):
    """And compared in both forms, because a request may ask for bytes."""
    table = Objects(Settings(), None, token)
    _number, handle = table.add(Thing())
    assert isinstance(table.find(dict(handle)), Thing)
    with pytest.raises(DecodeError, match="another server"):
        table.find({**handle, "token": "else"})


@pytest.mark.parametrize("describe", [lambda value: describe(value)[1], shown])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1,), "(1,)"),
        ((), "()"),
        ({}, "{}"),
        (set(), "set()"),
        (frozenset({1}), "frozenset({1})"),
        ({"a": [1, (2,)]}, "{'a': [1, (2,)]}"),
        (b"x" * 10, repr(b"x" * 10)),
        ("a'b", '"a\'b"'),
        (5, "5"),
        (None, "None"),
        (len, "<built-in function len>"),
        (gc.collect, "<built-in function collect>"),
        (Thing, repr(Thing)),
        (test_the_limit_names_itself, repr(test_the_limit_names_itself)),
        ([object], "[<class 'object'>]"),
    ],
)
def test_small_values_look_as_in_python(describe, value, text):
    """The walk over containers is not seen."""
    assert describe(value) == text


@pytest.mark.parametrize("describe", [lambda value: describe(value)[1], shown])
def test_no_description_is_longer_than_the_limit(describe):
    """Of anything, in characters."""
    for value in ("€" * 1000, ["€" * 1000] * 1000, {i: i for i in range(10_000)}, b"\0" * 1000):
        assert len(describe(value)) <= LONGEST_REPR


class Asked(BaseException):
    """Raised by what must not be asked."""


def ask(*_args):
    """Stand for code that takes its time, or fails."""
    raise Asked


class Metaclass(type):
    """A type whose class is user code."""

    __repr__ = __getattribute__ = __subclasscheck__ = __instancecheck__ = ask


class Shy:
    """Everything that could be asked of it is user code."""

    __repr__ = __str__ = __getattribute__ = __format__ = __bool__ = __len__ = __iter__ = ask


class ShyKey(Shy):
    """A key that can be put into a dict once."""

    asked = 0

    def __hash__(self):
        ShyKey.asked += 1
        return ask() if ShyKey.asked > 1 else 1


class ShyList(list):
    """A container with code of its own."""

    __repr__ = __iter__ = __len__ = __bool__ = __getitem__ = ask


class ShyText(str):
    """A text with code of its own."""

    __slots__ = ()
    __repr__ = __getitem__ = __len__ = __str__ = ask


def loaded(name):
    """Give a module whose loader is user code."""
    module = ModuleType(name)
    module.__loader__ = Shy()
    module.__getattr__ = ask
    return module


PLACE = " object at 0x[0-9a-f]+>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Shy, ".*Shy" + PLACE),
        (lambda: {ShyKey(): [Shy()]}, r"\{<.*ShyKey" + PLACE + r": \[<.*Shy" + PLACE + r"\]\}"),
        (lambda: ShyList([1]), ".*ShyList" + PLACE),
        (lambda: ShyText("a"), ".*ShyText" + PLACE),
        (lambda: Metaclass("Made", (), {}), "<class '.*Made'>"),
        (lambda: type.__call__(Metaclass("Made", (), {})), ".*Made" + PLACE),
        (lambda: MethodType(ask, Shy()), ".*method" + PLACE),
        (lambda: partial(ask, Shy()), ".*partial" + PLACE),
        (lambda: ValueError(Shy()), ".*ValueError" + PLACE),
        (lambda: deque([Shy()]), ".*deque" + PLACE),
        (lambda: slice(Shy()), ".*slice" + PLACE),
        (lambda: loaded("shy"), "<module 'shy'>"),
        (lambda: range(10**5000), ".*range" + PLACE),
        (lambda: loaded, "<function loaded at 0x.*>"),
    ],
)
def test_a_handle_is_described_without_user_code(value, text):
    """Which may take as long as it likes: nobody has asked for a repr."""
    assert re.fullmatch(text, describe(value())[1])


def test_what_is_shown_is_the_repr():
    """For log records, whose author wants to see it; an interrupt passes through."""

    class Shown:
        def __repr__(self):
            return "as it likes"

    assert shown([Shown()]) == "[as it likes]"

    class Interrupted:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shown(Interrupted())


def test_the_type_of_most_of_the_latest_objects_is_known():
    """Without asking the types anything; of a few objects nobody is told."""
    table = Objects(Settings(), None, "")
    for value in [Shy()] * 9:
        table.add(value)
    assert table.common_type() is None
    table.add(type.__call__(Metaclass("Made", (), {})))
    assert table.common_type() == f"{__name__}.Shy"
    for _ in range(200):
        table.add(Thing())
    assert table.common_type() == f"{__name__}.Thing"
