"""Plain terms to test with: hypothesis strategies, and a fixed assortment of awkward ones."""

import random

from hypothesis import strategies as st

from port_server.etf.text.verbatim import Bits, Improper, Name, Pairs, write

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = st.one_of(
    any_text.map(Name),
    st.sampled_from([Name("nil"), Name("end"), Name("maybe"), Name("a b"), Name("Elixir.Foo")]),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=20),
    any_text.map(str.encode),
    st.builds(
        lambda data, last, used: Bits(data + bytes([(last << (8 - used)) & 0xFF]), used),
        st.binary(max_size=5),
        st.integers(0, 127),
        st.integers(1, 7),
    ),
)


def map_of(pairs):
    """Give a map in which no key stands twice."""
    return Pairs({write(key): (key, value) for key, value in pairs}.values())


terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.lists(st.tuples(inner, inner), max_size=4).map(map_of),
        st.builds(Improper, st.lists(inner, min_size=1, max_size=3), leaves),
    ),
    max_leaves=12,
)

FLOATS = [0.0, -0.0, 1.0, -1.5, 0.1, 0.01, 0.001, 1e-4, 1e-5, 123456.789, 1e5, 1e6, 1e10, 1e15]
FLOATS += [2.0**53, 2.0**53 - 1, 1e16, 1e21, 1e22, 1.7976931348623157e308, 5e-324, 100.0, 1200.0]
FLOATS += [12345678901234.5, 1.0e100, 1.25e-7, 99999.0, 1000000.0, 1234567.0, 0.00012345, 3e-10]
WORDS = ["a", "nil", "true", "false", "undefined", "end", "div", "A", "a b", "", "Elixir.Foo.Bar"]
WORDS += ["Elixir", "Elixir.", "Elixir.foo", "Elixir.Elixir", "a@b", "_x", "a?", "a!", "a?b", "1a"]
WORDS += ["ä", "Ä", "ß", "日本", "it's", 'say "x"', "back\\slash", "new\nline", "\x00\x01\x7f"]
WORDS += ["+", "<<>>", "%{}", "..", "..//", "::", "^^^", "when", "not", "\ufeff", "a-b", "@a", "fn"]
TEXTS = ["", "abc", "é", "日本語", "a\nb\tc\r", 'q"q', "back\\", "\x00", "\x1b[0m", "\x7f", "\x80"]
TEXTS += ["#{x}", "#x", "😀", "\ufeff", "\uffff", "\a", "\b\f\v", "it's"]


def assortment(count=400, seed=20):
    """Give awkward leaves one by one, then `count` random nestings of them."""
    draw = random.Random(seed)
    flat = [Name(word) for word in WORDS] + [text.encode() for text in TEXTS] + FLOATS
    flat += [b"\xff", b"a\xe9", bytes(range(256)), Bits(b"\xa0", 3), Bits(b"ab\x80", 1)]
    flat += [0, -1, 255, 256, 2**31, -(2**31), 2**64, -(2**64), 10**50, 10**5000]
    flat += [[], (), Pairs()]

    def value(depth):
        if depth == 0 or draw.random() < 0.3:
            return draw.choice(flat)
        items = [value(depth - 1) for _ in range(draw.randrange(4))]
        match draw.randrange(5):
            case 0:
                return items
            case 1:
                return tuple(items)
            case 2:
                return map_of((draw.choice(flat), item) for item in items)
            case 3:
                return [(Name(draw.choice(WORDS)), item) for item in items]
            case _:
                return Improper([*items, 1], draw.choice([leaf for leaf in flat if leaf != []]))

    return flat + [value(4) for _ in range(count)]
