"""The table behind handles, without a server around it."""

import gc

import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct
from port_server.etf import fallback as codec
from port_server.runtime.objects import LONGEST_REPR, MODULE, Exports, Objects, describe
from port_server.settings import Settings


class Thing:
    """Something without a term."""


@pytest.fixture
def objects():
    table = Objects(Settings().replace(max_objects=5))
    table.belong(None, "token")
    return table


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
    exports = Exports(objects)
    for _ in range(3):
        with pytest.raises(EncodeError):
            codec.encode([Thing(), "\ud800"], default=exports.export)
        assert len(objects) == len(exports.ids) == 1
        exports.undo()
        assert len(objects) == len(exports.ids) == 0


def test_encodings_may_nest(objects):
    """A repr that encodes something of its own does not mix up whose object is whose."""
    outer = Exports(objects)
    inner_ids = []

    class Nesting:
        def __repr__(self):
            codec.encode([Thing()], default=outer.export)
            inner_ids.append(outer.take())
            return "nesting"

    codec.encode([Thing(), Nesting(), Thing()], default=outer.export)
    assert inner_ids == [[2]]
    assert outer.take() == [1, 3, 4]


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
    table = Objects(Settings())
    table.belong(None, token)
    _number, handle = table.add(Thing())
    assert isinstance(table.find(dict(handle)), Thing)
    with pytest.raises(DecodeError, match="another server"):
        table.find({**handle, "token": "else"})


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
    ],
)
def test_small_values_look_as_in_python(value, text):
    """The walk over containers is not seen."""
    assert describe(value)[1] == text


def test_no_description_is_longer_than_the_limit():
    """Of anything, in characters."""
    for value in ("€" * 1000, ["€" * 1000] * 1000, {i: i for i in range(10_000)}, b"\0" * 1000):
        assert len(describe(value)[1]) <= LONGEST_REPR


def test_an_interrupt_passes_through():
    """It is how a running request is stopped."""

    class Interrupted:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe(Interrupted())
