"""The branches nobody takes on purpose: values changed by hand, odd hooks, memory that runs out."""

import importlib
import sys
import threading
import time

import pytest

from port_server.etf import (
    Atom,
    BitString,
    DecodeError,
    EncodeError,
    FrozenList,
    ImproperList,
    Struct,
    register,
    structs,
)

FLOAT = b"F\x3f\xf8" + bytes(6)


def test_large_texts_and_many_floats(codec):
    """What does not fit the first buffer, of every kind, in one piece and in parts."""
    value = {
        "text": "x" * 70_000,
        "wide": "é" * 70_000,
        "floats": [n / 7 for n in range(5_000)],
        "mixed": [1.5] * 300 + [1] + [2.5] * 300 + [float("inf")],
        "bytes": [b"y" * 30_000, bytearray(b"z" * 30_000), "w" * 20_000],
    }
    data = codec.encode(value)
    assert b"".join(codec.encode_parts(value)) == data
    back = codec.decode(data)
    assert back["floats"] == value["floats"]
    assert back["mixed"][-1] == float("inf")
    assert back["wide"] == value["wide"]
    assert back["bytes"] == ["y" * 30_000, "z" * 30_000, "w" * 20_000]
    assert codec.encode({"k" * 70_000: 1, b"l" * 70_000: 2, ("m" * 70_000,): 3})


@pytest.mark.parametrize(
    "data",
    [
        b"c" + b"1.0e999".ljust(31, b"\0"),
        b"l\0\0\0\1a\1l\0\0\0\1\xff",
        b"l\0\0\0\1a\1l\0\0\0\1m\0\0\0\1\xffj",
        b"l\0\0\0\1a\1l\0\0\0\7a\1",
        b"l\0\0\0\1a\1\xff",
        b"t\0\0\0\2d\0\4datam\0\0\0\7",
        b"qw\1aw\1ba",
        b"qw\1aa\1",
        b"Xa\1",
    ],
)
def test_odd_ends_are_refused(codec, data):
    """Tails, funs and floats that stop being what they began as."""
    for mode in ("str", "bytes"):
        try:
            codec.decode(b"\x83" + data, binary_as=mode)
        except DecodeError:
            continue
        assert b"\xff" in data
        assert mode == "bytes"


def test_a_struct_key_that_names_no_module(codec):
    """`__struct__` with something else than an atom is a map, in a key as well."""
    plain = b"t\0\0\0\1w\x0a__struct__a\1"
    assert codec.decode(b"\x83" + plain) == {Atom("__struct__"): 1}
    assert codec.decode(b"\x83t\0\0\0\1" + plain + b"j") == {
        next(iter(codec.decode(b"\x83t\0\0\0\1" + plain + b"j"))): []
    }


def test_values_that_were_changed_into_nonsense_are_refused(codec):
    """Terms can be changed by hand; then they are an error, not a broken message."""
    bits = BitString(b"\xff", 3)
    bits.bits = 9
    improper = ImproperList([1], 2)
    improper.items = []
    struct = Struct("Elixir.A", {Atom("__struct__"): 1})
    pid = codec.decode(b"\x83Xw\1n" + bytes(12))
    pid.wire = None
    gone = memoryview(bytearray(3))
    gone.release()
    local = codec.decode(b"\x83y\1")
    for value in (bits, improper, struct, pid, gone, [local], {1: local}):
        with pytest.raises(EncodeError):
            codec.encode([value])
    for key in ("x" * 256, "\ud800"):
        with pytest.raises(EncodeError):
            codec.encode(Struct("Elixir.A", {key: 1}))


def test_subclasses_of_the_terms_go_as_their_base(codec):
    """The rule for built-in types holds for ours."""
    for base, arguments in (
        (Struct, ("Elixir.A", {"b": 1})),
        (FrozenList, ([1],)),
        (bytearray, (b"ab",)),
    ):
        kind = type("Sub", (base,), {})
        assert codec.encode(kind(*arguments)) == codec.encode(base(*arguments))


def test_a_value_that_cannot_be_hashed_is_no_key(codec):
    """A registered type without a hash is refused in a key, by name."""
    register("Shop.Basket", lambda _: bytearray())
    try:
        basket = b"t\0\0\0\1w\x0a__struct__w\x12Elixir.Shop.Basket"
        assert codec.decode(b"\x83" + basket) == bytearray()
        with pytest.raises(DecodeError, match="a bytearray cannot be a key"):
            codec.decode(b"\x83t\0\0\0\1" + basket + b"j")
    finally:
        structs.from_struct_by_module.pop("Elixir.Shop.Basket")


def test_interrupts_pass_through_hooks(codec):
    """Ctrl-C in a conversion is Ctrl-C, not an error of the value."""

    def interrupted(*_):
        raise KeyboardInterrupt

    class Field:
        __dataclass_fields__ = property(interrupted)

    register("Shop.Slow", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            codec.decode(b"\x83h\1t\0\0\0\1w\x0a__struct__w\x10Elixir.Shop.Slow")
        with pytest.raises(KeyboardInterrupt):
            codec.encode([{"a": object()}], default=interrupted)
    finally:
        structs.from_struct_by_module.pop("Elixir.Shop.Slow")


def test_heads_are_any_bytes_like(codec):
    """And they count for max_bytes."""
    for head in (b"head", bytearray(b"head"), memoryview(b"head")):
        assert codec.encode(1, head=head) == b"heada\1"
        with pytest.raises(EncodeError, match="larger than 3 bytes"):
            codec.encode([1] * 1000, head=head, max_bytes=3)
    with pytest.raises(TypeError):
        codec.encode(1, head="text")


def test_hooks_may_encode_and_decode(codec):
    """A conversion may use the codec itself, however deep."""

    def inner(value):
        count = getattr(value, "count", 5)
        if count == 0:
            return codec.decode(codec.encode([1, "x" * 3000]))
        nested = type("Nested", (), {"count": count - 1})()
        return codec.encode([nested, "y" * 3000], default=inner)

    assert len(codec.encode([object()], default=inner)) > 18_000


MEMORY_VALUE = {
    "text": ["é" * 30, "x" * 5_000, b"\xff" * 20_000, 2**200, -(2**63), 1.5],
    Atom("made_up_for_memory"): (None, {1, 2}, range(3), BitString(b"\xff", 3)),
    b"k": ImproperList([1], 2),
    (1, "a"): Struct("Elixir.User", {"age": 7}),
}


@pytest.mark.skipif(sys.platform != "linux", reason="one platform is enough")
@pytest.mark.parametrize("which", ["decode", "typed", "bad", "encode", "parts", "unwritable"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_running_out_of_memory_anywhere_is_a_memory_error(which):
    """Whichever allocation fails, first or hundredth: an exception, no crash, no reference lost."""
    memory = pytest.importorskip(
        "_testcapi", reason="this Python was built without its test modules"
    )
    native = importlib.import_module("port_server.etf.native")
    data = native.encode(MEMORY_VALUE)
    floats = b"\x83l\0\0\0\2" + FLOAT * 2 + b"j"
    calls = {
        "decode": lambda: native.decode(data, binary_as="bytes"),
        "typed": lambda: native.decode(floats, floats_as="memoryview"),
        "bad": lambda: native.decode(b"\x83h\2a\1t\0\0\0\2m\0\0\0\1aa\1w\1aa\1"),
        "encode": lambda: native.encode(MEMORY_VALUE),
        "parts": lambda: native.encode_parts(MEMORY_VALUE, by_reference_from=100),
        "unwritable": lambda: native.encode([{"a": {"b": 1, b"b": 2}}]),
    }
    call = calls[which]
    expected = DecodeError if which == "bad" else EncodeError if which == "unwritable" else None
    for number in range(1, 400):
        done = False
        memory.set_nomemory(number, number + 1)
        try:
            call()
            done = True
        except (MemoryError, DecodeError, EncodeError):
            pass
        finally:
            memory.remove_mem_hooks()
        if done:
            continue
    if expected is None:
        call()
    else:
        with pytest.raises(expected):
            call()


def test_atoms_of_many_threads_are_forgotten_without_an_error(monkeypatch):
    """A thread drops the last reference to an atom while another one makes it anew."""
    failures = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    end = time.monotonic() + 0.3

    def make():
        while time.monotonic() < end:
            for n in range(20):
                Atom(f"an atom of threads {n % 2}")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
