"""What bytes become: every tag, every option, every refusal. Hostile volumes: test_hostile.py."""

import datetime as dt
import decimal

import pytest

from port_server.etf import (
    Atom,
    BitString,
    DecodeError,
    FrozenList,
    FrozenMap,
    Fun,
    ImproperList,
    LocalTerm,
    Pid,
    Port,
    Reference,
    Struct,
)


def atom(name: str) -> bytes:
    data = name.encode()
    return b"w" + bytes((len(data),)) + data


def binary(data: bytes) -> bytes:
    return b"m" + len(data).to_bytes(4, "big") + data


def map_(*pairs: bytes) -> bytes:
    return b"t" + (len(pairs) // 2).to_bytes(4, "big") + b"".join(pairs)


def list_(*items: bytes, tail: bytes = b"j") -> bytes:
    return b"l" + len(items).to_bytes(4, "big") + b"".join(items) + tail


NODE = b"d\0\x0dnonode@nohost"
TERMS = [
    (b"a\xff", 255),
    (b"b\x80\0\0\0", -(2**31)),
    (b"n\x00\x00", 0),
    (b"n\x08\x00" + b"\xff" * 8, 2**64 - 1),
    (b"n\x08\x01" + b"\0" * 7 + b"\x80", -(2**63)),
    (b"n\x08\x01" + b"\xff" * 8, -(2**64 - 1)),
    (b"o\0\0\1\0\x01" + b"\xff" * 256, -(2**2048 - 1)),
    (b"F\x3f\xf8" + b"\0" * 6, 1.5),
    (b"c1.50000000000000000000e+00" + b"\0" * 5, 1.5),
    (b"s\x02ok", Atom("ok")),
    (b"d\0\x02ok", Atom("ok")),
    (b"w\x02ok", Atom("ok")),
    (b"v\0\x02ok", Atom("ok")),
    (b"d\0\x01\xe9", Atom("é")),
    (b"w\x02\xc3\xa9", Atom("é")),
    (b"w\x04true", True),
    (b"d\0\x05false", False),
    (b"s\x03nil", None),
    (b"w\x09undefined", Atom("undefined")),
    (b"h\0", ()),
    (b"h\2a\1a\2", (1, 2)),
    (b"i\0\0\0\2a\1a\2", (1, 2)),
    (b"j", []),
    (b"k\0\3abc", [97, 98, 99]),
    (list_(b"a\1"), [1]),
    (list_(b"a\1", tail=list_(b"a\2")), [1, 2]),
    (list_(b"a\1", tail=b"k\0\1\2"), [1, 2]),
    (list_(tail=b"a\1"), 1),
    (list_(b"a\1", tail=b"a\2"), ImproperList([1], 2)),
    (binary(b"h\xc3\xa9"), "hé"),
    (b"M\0\0\0\2\3\xff\xe0", BitString(b"\xff\xe0", 3)),
    (b"M\0\0\0\2\x08ab", "ab"),
    (map_(), {}),
    (map_(binary(b"a"), b"a\1"), {"a": 1}),
    (map_(list_(b"a\1"), b"a\1"), {FrozenList([1]): 1}),
    (map_(map_(b"a\1", b"a\2"), b"a\1"), {FrozenMap({1: 2}): 1}),
]


@pytest.mark.parametrize(("data", "value"), TERMS, ids=lambda value: repr(value)[:40])
def test_a_term_becomes_its_python_value(codec, data, value):
    """Every tag gives the value and the type of the mapping table, alone and inside a tuple."""
    got = codec.decode(b"\x83" + data)
    assert got == value
    assert type(got) is type(value)
    assert codec.decode(b"\x83h\2" + data + b"j") == (value, [])
    assert codec.read_term(b"xx" + data + b"yy", 2) == (value, 2 + len(data))


@pytest.mark.parametrize(("data", "value"), TERMS, ids=lambda value: repr(value)[:40])
def test_every_truncation_is_an_error(codec, data, value):  # noqa: ARG001
    """A term cut anywhere is refused, and so is a byte too many."""
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            codec.decode(b"\x83" + data[:end])
    with pytest.raises(DecodeError, match="1 bytes follow"):
        codec.decode(b"\x83" + data + b"j")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"X" + NODE + b"\0\0\0\x60\0\0\0\0\0\0\0\0", Pid, "#PID<0.96.0>"),
        (b"g" + NODE + b"\0\0\0\x60\0\0\0\0\0", Pid, "#PID<0.96.0>"),
        (b"Y" + NODE + b"\0\0\0\5\0\0\0\0", Port, "#Port<0.5>"),
        (b"f" + NODE + b"\0\0\0\5\0", Port, "#Port<0.5>"),
        (b"x" + NODE + b"\0\0\0\0\0\0\0\5\0\0\0\0", Port, "#Port<0.5>"),
        (
            b"Z\0\3" + NODE + bytes(4) + b"\0\0\0\1\0\0\0\2\0\0\0\3",
            Reference,
            "#Reference<0.3.2.1>",
        ),
        (b"r\0\1" + NODE + b"\0\0\0\0\1", Reference, "#Reference<0.1>"),
        (b"e" + NODE + b"\0\0\0\1\0", Reference, "#Reference<0.1>"),
        (b"qd\0\x0bElixir.Enumd\0\3mapa\2", Fun, "&Enum.map/2"),
        (b"y\1\2\3", LocalTerm, "#LocalTerm<79010203>"),
    ],
)
def test_opaque_terms_are_carried_bit_exactly(codec, data, kind, text):
    """Pids and their kin compare, hash, print like on the BEAM, and go back as they came."""
    term = codec.decode(b"\x83" + data)
    assert type(term) is kind
    assert repr(term) == text
    assert term == codec.decode(bytearray(b"\x83" + data))
    assert len({term, codec.decode(b"\x83" + data)}) == 1
    assert codec.encode(term) == b"\x83" + data


def test_one_pid_in_two_encodings_is_one_pid(codec):
    """OTP 25 and 26 spell the node's name differently; that makes no second process."""
    tail = b"\0\0\0\x60\0\0\0\0\0\0\0\0"
    old = codec.decode(b"\x83X" + NODE + tail)
    new = codec.decode(b"\x83Xw\x0dnonode@nohost" + tail)
    assert old == new
    assert hash(old) == hash(new)


def test_binary_as(codec):
    """A binary's type is the caller's choice, for every binary of the term alike."""
    data = b"\x83" + list_(binary(b"\xff\xfe"), map_(binary(b"k"), binary(b"")))
    assert codec.decode(data, binary_as="bytes") == [b"\xff\xfe", {b"k": b""}]
    first, fields = codec.decode(data, binary_as="memoryview")
    assert type(first) is memoryview
    assert first == b"\xff\xfe"
    assert [type(key) for key in fields] == [bytes]
    with pytest.raises(ValueError, match="binary_as"):
        codec.decode(data, binary_as="text")


def test_a_memoryview_lies_in_the_buffer_it_came_from(codec):
    """Nothing is copied: a change of the buffer shows."""
    buffer = bytearray(b"\x83" + binary(b"abc"))
    view = codec.decode(buffer, binary_as="memoryview")
    buffer[-1:] = b"d"
    assert view == b"abd"


def test_not_utf8_names_the_place_and_the_ways_out(codec):
    """In str mode a binary that is no text is an error with a path and two remedies."""
    data = b"\x83" + map_(binary(b"rows"), list_(b"j", map_(atom("name"), binary(b"ok\xff"))))
    with pytest.raises(DecodeError) as caught:
        codec.decode(data)
    assert caught.value.path == '["rows"][1]["name"]'
    assert caught.value.reason == "a binary of 3 bytes is not UTF-8 (byte 0xff at 2)"
    assert "PyPort.bytes/1" in caught.value.remedy
    assert "binary_as: :bytes" in caught.value.remedy
    assert caught.value.at("globals") is caught.value
    assert str(caught.value).startswith('globals["rows"][1]["name"]: a binary of')


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ((atom("a"), binary(b"a")), ':a and "a"'),
        ((b"a\1", b"F\x3f\xf0" + b"\0" * 6), "1 and 1.0"),
        ((b"a\1", atom("true")), "1 and True"),
        ((binary(b"a"), binary(b"a")), '"a" and "a"'),
        ((b"h\1a\0", b"h\1" + atom("false")), "(0,) and (False,)"),
    ],
)
def test_keys_that_become_equal_are_an_error_that_names_them(codec, keys, names):
    """No entry of a map is dropped in silence."""
    one, two = keys
    with pytest.raises(DecodeError, match="equal in Python") as caught:
        codec.decode(b"\x83h\1" + map_(one, b"j", two, b"j"))
    assert names in caught.value.reason
    assert caught.value.path == "[0]"


def test_members_of_a_set_that_become_equal_are_an_error(codec):
    """A MapSet is a map inside, and loses no member in silence either."""
    members = map_(atom("a"), b"j", binary(b"a"), b"j")
    data = map_(atom("__struct__"), atom("Elixir.MapSet"), atom("map"), members)
    with pytest.raises(DecodeError, match='equal in Python: :a and "a"'):
        codec.decode(b"\x83" + data)


def test_depth_is_limited(codec):
    """512 levels unless asked otherwise, and never the C stack."""
    nested = b"\x83" + b"h\1" * 512 + b"j"
    assert codec.decode(nested)
    with pytest.raises(DecodeError, match="deeper than 512 levels"):
        codec.decode(b"\x83" + b"h\1" * 513 + b"j")
    with pytest.raises(DecodeError, match="deeper than 3 levels"):
        codec.decode(b"\x83" + b"l\0\0\0\1" * 4 + b"j" * 5, max_depth=3)
    with pytest.raises(ValueError, match="max_depth"):
        codec.decode(nested, max_depth=10**6)


@pytest.mark.parametrize(
    "data",
    [
        b"\x83P\0\0\0\1x\x9cK\xac\x02\0\0c\0c",
        b"\x82j",
        b"\x83D",
        b"\x83N\0",
        b"\x83u\0\0\0\0",
        b"\x83h\1y\1",
        b"\x83l\xff\xff\xff\xffj",
        b"\x83m\xff\xff\xff\xffj",
        b"\x83t\x7f\xff\xff\xffj",
        b"\x83i\xff\xff\xff\xffj",
        b"\x83o\xff\xff\xff\xff\0j",
        b"\x83n\1\2\1",
        b"\x83F\x7f\xf0" + b"\0" * 6,
        b"\x83F\x7f\xf8" + b"\0" * 6,
        b"\x83c" + b"nan".ljust(31, b"\0"),
        b"\x83c" + b"1_0".ljust(31, b"\0"),
        b"\x83c" + b" 1.0".ljust(31, b"\0"),
        b"\x83M\0\0\0\0\1",
        b"\x83M\0\0\0\1\0a",
        b"\x83M\0\0\0\1\x09a",
        b"\x83w\x02\xff\xff",
        b"\x83v\1\0" + b"a" * 256,
        b"\x83p\0\0\0\4",
        b"\x83r\0\0" + NODE + b"\0",
    ],
)
def test_bad_bytes_are_refused(codec, data):
    """Compressed, unknown, lying or malformed: a DecodeError, not a guess."""
    with pytest.raises(DecodeError):
        codec.decode(data)


def test_lying_lengths_do_not_add_up(codec):
    """A list that claims all the bytes left leaves none to the list inside it."""
    inner = b"l" + (90).to_bytes(4, "big") + b"j" * 91
    with pytest.raises(DecodeError, match="elements are announced"):
        codec.decode(b"\x83l" + (90).to_bytes(4, "big") + inner)


def test_floats_as(codec):
    """A list of floats decodes to a typed buffer on request; a list of anything else to a list."""
    data = b"\x83" + list_(b"F\x3f\xf8" + b"\0" * 6, b"F\xc0" + b"\0" * 7)
    assert codec.decode(data) == [1.5, -2.0]
    view = codec.decode(data, floats_as="memoryview")
    assert type(view) is memoryview
    assert view.format == "d"
    assert view.tolist() == [1.5, -2.0]
    mixed = b"\x83" + list_(b"F\x3f\xf8" + b"\0" * 6, b"a\1")
    assert codec.decode(mixed, floats_as="memoryview") == [1.5, 1]
    broken = b"\x83" + list_(b"F\x7f\xf8" + b"\0" * 6)
    with pytest.raises(DecodeError, match="not finite"):
        codec.decode(broken, floats_as="memoryview")


def struct(module: str, **fields: bytes) -> bytes:
    pairs = [atom("__struct__"), atom("Elixir." + module)]
    for name, value in fields.items():
        pairs += [atom(name), value]
    return b"\x83" + map_(*pairs)


def test_a_struct_nobody_registered_keeps_its_module(codec):
    """It is a dict with attribute access, and goes back as the same struct."""
    user = codec.decode(struct("User", name=binary(b"Eve"), age=b"a\7"))
    assert type(user) is Struct
    assert user.module == "Elixir.User"
    assert user == Struct("Elixir.User", {"name": "Eve", "age": 7})
    assert user.name == "Eve"
    assert dict(user) == {"name": "Eve", "age": 7}
    assert codec.decode(codec.encode(user)) == user
    with pytest.raises(AttributeError, match="no field 'email'"):
        _ = user.email


def test_port_bytes_are_bytes_in_every_mode(codec):
    """`PyPort.bytes/1` says bytes, whichever of its two keys comes first."""
    data = struct("PyPort.Bytes", data=binary(b"\xff"))
    turned = b"\x83" + map_(
        b"d\0\4data", binary(b"\xff"), b"d\0\x0a__struct__", atom("Elixir.PyPort.Bytes")
    )
    for mode in ("str", "bytes", "memoryview"):
        assert codec.decode(data, binary_as=mode) == b"\xff"
        assert codec.decode(turned, binary_as=mode) == b"\xff"
        assert type(codec.decode(turned, binary_as=mode)) is bytes


def test_plain_structs(codec):
    """With `plain_structs` every struct stays a Struct: templates are read that way."""
    data = struct("MapSet", map=map_(b"a\1", b"j"))
    assert codec.decode(data) == {1}
    assert codec.decode(data, plain_structs=True) == Struct("Elixir.MapSet", {"map": {1: []}})


def test_built_in_structs(codec):
    """Elixir's calendar, ranges, sets and decimals are Python's."""
    iso = atom("Elixir.Calendar.ISO")
    day = {"calendar": iso, "year": b"b\0\0\x07\xe8", "month": b"a\2", "day": b"a\x1d"}
    clock = {"hour": b"a\1", "minute": b"a\2", "second": b"a\3", "microsecond": b"h\2a\4a\6"}
    zone = {
        "utc_offset": b"a\0",
        "std_offset": b"a\0",
        "time_zone": binary(b"Etc/UTC"),
        "zone_abbr": binary(b"UTC"),
    }
    moment = dt.datetime(2024, 2, 29, 1, 2, 3, 4)  # noqa: DTZ001
    assert codec.decode(struct("Date", **day)) == moment.date()
    assert codec.decode(struct("Time", **clock, calendar=iso)) == moment.time()
    assert codec.decode(struct("NaiveDateTime", **day, **clock)) == moment
    aware = codec.decode(struct("DateTime", **day, **clock, **zone))
    assert aware == moment.replace(tzinfo=dt.UTC)
    assert codec.decode(struct("Range", first=b"a\1", last=b"a\3", step=b"a\1")) == range(1, 4)
    number = codec.decode(
        struct("Decimal", sign=b"b" + b"\xff" * 4, coef=b"a\x0f", exp=b"b" + b"\xff" * 4)
    )
    assert number == decimal.Decimal("-1.5")
    for value in (
        moment.date(),
        moment.time(),
        moment,
        aware,
        range(1, 4),
        range(9, 0, -2),
        number,
    ):
        assert codec.decode(codec.encode(value)) == value


def test_a_struct_that_cannot_be_read_is_a_decode_error(codec):
    """A month 13 is an error with a path; a year Python has not stays a Struct."""
    iso = atom("Elixir.Calendar.ISO")
    bad = struct("Date", calendar=iso, year=b"a\1", month=b"a\x0d", day=b"a\1")
    with pytest.raises(DecodeError, match=r"a Date could not be converted: ValueError"):
        codec.decode(bad)
    early = struct("Date", calendar=iso, year=b"b" + b"\xff" * 4, month=b"a\1", day=b"a\1")
    assert type(codec.decode(early)) is Struct
