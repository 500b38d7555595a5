"""What must hold for any bytes: harness.c calls `check` for every input that libFuzzer makes up.

Run as a script it writes the seeds: `python check.py seeds DIRECTORY`.
"""

import pathlib
import sys
from typing import Any

from port_server.etf import DecodeError, EncodeError, native

MODES: list[dict[str, Any]] = [
    {},
    {"binary_as": "bytes"},
    {"binary_as": "memoryview", "floats_as": "memoryview"},
    {"plain_structs": True},
    {"floats_as": "memoryview"},
    {"max_depth": 3},
    {"binary_as": "bytes", "plain_structs": True, "max_depth": 20},
]


class Hook:
    """A value that has no term: default= is asked, and changes what stands around it."""


def check(data: bytes) -> None:
    """Decode, encode, compare; the first byte chooses the options and what the hooks do."""
    if not data:
        return
    choice = data[0]
    mode = MODES[choice % len(MODES)]
    body = data[1:]
    try:
        value, end = native.read_term(body, 0, **mode)
    except DecodeError as error:
        str(error)
        return
    assert 0 < end <= len(body)
    try:
        written = native.encode(value)
    except EncodeError as error:
        # Depth: a struct's conversion may add a level or two to what was read.
        assert any(word in error.reason for word in ("become equal", "local term", "deeper"))  # noqa: PT017
        return
    assert b"".join(native.encode_parts(value, by_reference_from=choice)) == written
    # floats_as: a list whose end was an empty STRING_EXT is only seen to be floats the second time.
    options = {name: mode[name] for name in mode if name not in ("max_depth", "floats_as")}
    try:
        again = native.decode(written, **options)
    except DecodeError as error:
        # %PyPort.Bytes{} and typed floats went out as plain binaries, which need not be text.
        assert "is not UTF-8" in error.reason  # noqa: PT017
        return
    assert native.encode(again) == written
    meddle(value, choice)


def meddle(value: Any, choice: int) -> None:
    """Encode `value` with hooks inside it that change it meanwhile."""
    victims = [item for item in walk(value, 0) if type(item) in (list, dict)]
    for victim in victims[:4]:
        if type(victim) is list:
            victim.insert(choice % (len(victim) + 1), Hook())
        else:
            victim["hook"] = Hook()
    state = [choice]

    def default(_: Hook) -> Any:
        state[0] = number = state[0] * 5 + 1 & 255
        if victims:
            victim = victims[number % len(victims)]
            if number & 4:
                victim.clear()
            elif type(victim) is list:
                victim.append(number)
            else:
                victim[number % 7] = [victim] if number & 1 else b"x" * 20_000
        return [None, b"y" * 20_000, [1], {"a": 1}][number % 4]

    try:
        native.decode(native.encode((value,), default=default, max_depth=40), binary_as="bytes")
        b"".join(native.encode_parts((value,), default=default, max_depth=40, by_reference_from=9))
    except (EncodeError, DecodeError) as error:
        str(error)


def walk(value: Any, depth: int) -> Any:
    yield value
    if depth < 5 and isinstance(value, (list, tuple)):
        for item in value[:10]:
            yield from walk(item, depth + 1)
    elif depth < 5 and isinstance(value, dict):
        for item in list(value.values())[:10]:
            yield from walk(item, depth + 1)


def seeds() -> list[bytes]:
    """Give one small term of every tag and every built-in struct."""
    node = b"d\0\x0dnonode@nohost"
    iso = b"w\x13Elixir.Calendar.ISO"
    struct = b"w\x0a__struct__"
    plain = native.encode(
        [1, 255, 256, -1, 2**31, -(2**63), 2**64, 1.5, None, True, "text", "é", b"\xff", (), (1, 2),
         {}, {"a": 1, "b": [1.0, 2.0]}, [[]], {(1, "a"): {"c": 0}}, range(3), {1, 2}, {"x": {3}}],
        head=b"",
    )  # fmt: skip
    return [
        plain,
        b"i\0\0\0\2a\1k\0\3abc",
        b"l\0\0\0\1a\1l\0\0\0\1a\2k\0\1\3",
        b"l\0\0\0\1a\1a\2",
        b"l\0\0\0\2F\x3f\xf8" + bytes(6) + b"F" + bytes(8) + b"j",
        b"M\0\0\0\2\3\xff\xe0",
        b"o\0\0\0\x0a\1" + b"\xff" * 10,
        b"c" + b"-1.50000000000000000000e+00".ljust(31, b"\0"),
        b"h\4d\0\2oks\2okw\2okv\0\2ok",
        b"X" + node + bytes(12),
        b"g" + node + bytes(9),
        b"Y" + node + bytes(8),
        b"f" + node + bytes(5),
        b"x" + node + bytes(12),
        b"Z\0\3" + node + bytes(16),
        b"r\0\2" + node + bytes(9),
        b"e" + node + bytes(5),
        b"qw\4listw\3mapa\2",
        b"p\0\0\0\x30" + bytes(44),
        b"y\1\2\3",
        b"t\0\0\0\1l\0\0\0\1a\1jt\0\0\0\1a\1j",
        b"t\0\0\0\2" + struct + b"w\x0bElixir.Userw\3agea\7",
        b"t\0\0\0\2w\4datam\0\0\0\1\xff" + struct + b"w\x13Elixir.PyPort.Bytes",
        b"t\0\0\0\3" + struct + b"w\x0dElixir.MapSetw\3mapt\0\0\0\1a\1jw\7versiona\2",
        b"t\0\0\0\4" + struct + b"w\x0cElixir.Rangew\5firsta\1w\4lasta\3w\4stepa\1",
        b"t\0\0\0\5" + struct + b"w\x0bElixir.Datew\x08calendar" + iso
        + b"w\4yearb\0\0\7\xe8w\5montha\2w\3daya\3",
        b"t\0\0\0\4" + struct + b"w\x0eElixir.Decimalw\4signa\1w\4coefa\x0fw\3expa\1",
    ]  # fmt: skip


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[2])
    for number, seed in enumerate(seeds()):
        for mode in range(len(MODES)):
            check(bytes((mode,)) + seed)
            (where / f"seed-{number}-{mode}").write_bytes(bytes((mode,)) + seed)
