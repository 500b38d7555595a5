"""Erlang term text, read and written, and Elixir's: no BEAM here, test_text_beam has that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_terms import assortment, terms

from port_server.etf.text.elixir import format_elixir
from port_server.etf.text.erlang import format_erlang
from port_server.etf.text.reader import TermReader, TextError, parse
from port_server.etf.text.verbatim import Bits, Improper, Name, Pairs, VerbatimError, read, write

A, B = Name("a"), Name("b")


def everything(reader):
    """Give the terms and the errors that are ready."""
    found = []
    while True:
        try:
            term = reader.next_term()
        except TextError as error:
            found.append(error)
            continue
        if term is None:
            return found
        found.append(term)


@given(terms)
def test_what_is_printed_reads_back_as_the_same_term(term):
    """Erlang text loses nothing: not the type of a key, not the sign of a zero."""
    assert write(parse(format_erlang(term))) == write(term)


@given(terms)
def test_bytes_read_back_as_the_same_term(term):
    """The plain model writes what it reads."""
    assert write(read(write(term))) == write(term)


@given(terms)
def test_every_term_has_a_text_on_one_line(term):
    """Showing a term never fails and never breaks the line."""
    assert "\n" not in format_elixir(term)
    assert "\n" not in format_erlang(term)


@given(st.lists(terms, max_size=4), st.data())
def test_terms_come_out_the_same_wherever_the_text_is_cut(several, data):
    """A term may arrive in any pieces, down to single characters."""
    text = "".join(f"{format_erlang(term)}. % a comment.\n" for term in several)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    reader, found = TermReader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        reader.feed(text[begin:end])
        found += everything(reader)
    reader.close()
    found += everything(reader)
    assert [write(term) for term in found] == [write(term) for term in several]


def test_terms_come_out_the_same_one_character_at_a_time():
    """The finest cut of all, over text that has everything in it."""
    text = "".join(f"{format_erlang(term)}.\n" for term in assortment(60) if term != 10**5000)
    reader, found = TermReader(), []
    for char in text:
        reader.feed(char)
        found += everything(reader)
    assert "".join(f"{format_erlang(term)}.\n" for term in found) == text


def test_a_term_comes_out_as_soon_as_its_full_stop_has_been_read():
    """Nothing waits for the next term, nor for the end of the input."""
    reader = TermReader()
    reader.feed("{a, 1.5}.")
    assert everything(reader) == []  # the dot is a full stop only if white space follows
    reader.feed("\n")
    assert everything(reader) == [(A, 1.5)]


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("a", A),
        ("'It\\'s'", Name("It's")),
        ("'日本'", Name("日本")),
        ('"abc"', [97, 98, 99]),
        ('"a" "b"\n "c"', [97, 98, 99]),
        ('"\\x{65E5}\\n\\101\\x41\\^a\\s"', [0x65E5, 10, 65, 65, 1, 32]),
        ("$a", 97),
        ("$\\n", 10),
        ("$ ", 32),
        ("$.", 46),
        ("16#fF", 255),
        ("36#zz", 1295),
        ("1_000_000", 1000000),
        ("-5", -5),
        ("+5", 5),
        ("- 5", -5),
        ("-2#101", -5),
        ("1.5e3", 1500.0),
        ("1.0E-2", 0.01),
        ("-0.0", -0.0),
        ("[]", []),
        ("[1,2|3]", Improper([1, 2], 3)),
        ("[1|[2|[3]]]", [1, 2, 3]),
        ("[1|[2|3]]", Improper([1, 2], 3)),
        ("{}", ()),
        ("{a,{b}}", (A, (B,))),
        ("#{}", Pairs()),
        ("# {}", Pairs()),
        ('"\\^\\"', [28]),
        ("#{a=>1,1=>b,1.0=>a,[1]=>[]}", Pairs([(A, 1), (1, B), (1.0, A), ([1], [])])),
        ("<<>>", b""),
        ('<<"abc">>', b"abc"),
        ('<<"é">>', b"\xe9"),
        ('<<"é"/utf8>>', b"\xc3\xa9"),
        ('<<"a" "b", 1, $c>>', b"ab\x01c"),
        ("<<1,-1,256,257>>", b"\x01\xff\x00\x01"),
        ("<<1:16>>", b"\x00\x01"),
        ("<<1:16/little>>", b"\x01\x00"),
        ("<<1:2/unit:8>>", b"\x00\x01"),
        ("<<1:4,2:4>>", b"\x12"),
        ("<<5:3>>", Bits(b"\xa0", 3)),
        ("<<1:12/little>>", Bits(b"\x01\x00", 4)),
        ("<<1.0/float>>", b"\x3f\xf0" + bytes(6)),
        ("<<1:32/float>>", b"\x3f\x80\x00\x00"),
        ('<<"ab":16/little>>', b"a\0b\0"),
        ('<<"é"/utf16-little, 16#65E5/utf8>>', b"\xe9\x00" + "日".encode()),
        ("<<0:0>>", b""),
        ("% a comment. still.\n a % b\n", A),
    ],
)
def test_text_means_what_it_means_in_erlang(text, term):
    """One line for each piece of the syntax."""
    assert write(parse(text)) == write(term)


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("{a, }.", 1, 5, "expected a term, found `}`"),
        ("{a b}.", 1, 4, "expected `,` or `}`, found b"),
        ("\n {a,\n [1 2]}.", 3, 5, "expected `,`, `|` or `]`, found 2"),
        ("[1|2,3].", 1, 5, "expected `]`, found `,`"),
        ("#{a}.", 1, 4, "expected `=>` and the value of this key, found `}`"),
        ("#{a := 1}.", 1, 5, "a map is `#{key => value}`"),
        ("#{a => 1, a => 2}.", 1, 11, "the key a stands in this map already"),
        ("{eval, %{}}.", 1, 8, "an Erlang map is `#{key => value}`"),
        ("{:ok}.", 1, 2, "an Erlang atom has no colon"),
        ("{Foo}.", 1, 2, "the variable Foo (an atom: 'Foo')"),
        ("{end}.", 1, 2, "end is a reserved word; as an atom it is 'end'"),
        ("<0.12.0>.", 1, 1, "a pid cannot be written as text"),
        ("#Ref<0.1>.", 1, 1, "references and funs cannot be written"),
        ('~"abc".', 1, 1, 'a binary is <<"text">>'),
        ("a b.", 1, 3, "expected a full stop `.`"),
        ("a.b.", 1, 2, "a full stop has white space behind it"),
        ("{a.\n", 1, 3, "(the `{` of line 1, column 1 is still open)"),
        ("{a", 1, 3, "found the end of the input (the `{` of line 1, column 1 is still open)"),
        ("a", 1, 2, "expected a full stop `.` (a dot, then white space), found the end"),
        ('{"abc', 1, 2, 'this " is never closed'),
        ("'abc\n", 1, 1, "this ' is never closed"),
        ("- a.", 1, 3, "expected a number after the sign"),
        ("2#12.", 1, 1, "2#12 has digits that base 2 lacks"),
        ("99#1.", 1, 1, "a base is between 2 and 36"),
        ("1.0e999.", 1, 1, "beyond the range of a float"),
        ('"\\x{110000}".', 1, 1, "an escape in this text is no character"),
        ("'\\xD8\\x{D800}'.", 1, 1, "an escape in this text is no character"),
        ("<<a>>.", 1, 3, "expected a number, a string or `>>`, found a"),
        ("'\\^'.", 1, 1, "an escape in this text is no character"),
        ("<<1/unit:8>>.", 1, 11, "a unit needs a size"),
        ("<<1:x>>.", 1, 5, "expected a size in units, found x"),
        ("<<1/foo>>.", 1, 8, "foo is no type"),
        ("<<1.5>>.", 1, 6, "write 1.5/float"),
        ('<<"€">>.', 1, 6, "€ does not fit a byte"),
        ("<<1:99999999999>>.", 1, 16, "at most 134217728 are taken"),
        ("<<16#D800/utf8>>.", 1, 15, "no character that utf8 can hold"),
        (f"'{'a' * 256}'.", 1, 1, "at most 255 characters"),
        (f"{'a' * 256}.", 1, 1, "at most 255 characters"),
        ("$", 1, 1, "expected a character after `$`"),
    ],
)
def test_a_bad_term_is_refused_where_it_is_bad(text, line, column, reason):
    """The error names line and column, what was found, and what would have been right."""
    reader = TermReader()
    reader.feed(text)
    reader.close()
    error = everything(reader)[0]
    assert isinstance(error, TextError)
    assert reason in error.reason
    assert (error.line, error.column) == (line, column)


def test_a_number_in_any_base_has_as_many_digits_as_it_likes():
    """Python's limit of 4,300 digits holds for every base that is no power of two."""
    for base, digits in ((2, "10"), (3, "12"), (10, "12"), (36, "1z")):
        value = int(digits, base) * (base**6000 - 1) // (base**2 - 1)
        assert parse(f"{base}#{digits * 3000}") == value


def test_after_an_error_reading_goes_on_behind_the_next_full_stop():
    """One slip costs one term, and positions stay right."""
    reader = TermReader()
    reader.feed("a. {b c d. ok.\n[1 2].\n{x}. )")
    reader.close()
    found = everything(reader)
    places = [(item.line, item.column) for item in found if isinstance(item, TextError)]
    assert places == [(1, 7), (2, 4), (3, 6)]
    kept = [item for item in found if not isinstance(item, TextError)]
    assert kept == [A, Name("ok"), (Name("x"),)]


def test_a_long_string_in_small_pieces_takes_linear_time():
    """No piece is scanned twice: nothing here takes time that grows with what went before."""
    reader = TermReader()
    reader.feed('<<"')
    for _ in range(4000):
        reader.feed("x" * 64)
        assert reader.next_term() is None
    reader.feed('">>.\n')
    assert reader.next_term() == b"x" * 256000


def test_nesting_deeper_than_pythons_stack_is_no_trouble():
    """Reading, writing and showing use no recursion."""
    deep = parse("[" * 20000 + "]" * 20000)
    assert len(format_erlang(read(write(deep)))) == 40000
    assert len(format_elixir(deep)) == 40000


@given(st.binary(max_size=40))
def test_bytes_that_are_no_term_raise_only_the_one_error(noise):
    """Noise behind a version byte is a term or a VerbatimError, nothing else."""
    try:
        term = read(b"\x83" + noise)
    except VerbatimError:
        return
    format_erlang(term)
    format_elixir(term)


@pytest.mark.parametrize(
    "body",
    [
        b"F\x7f\xf8" + bytes(6),
        b"F\xff\xf0" + bytes(6),
        *(
            b"c" + text.ljust(31, b"\0")
            for text in (b"nan", b"inf", b"1e999", b"1.0e999", b"1_0.0")
        ),
    ],
    ids=["NaN", "infinity", "old nan", "old inf", "old 1e999", "old 1.0e999", "old 1_0.0"],
)
def test_a_float_that_the_beam_refuses_is_no_term(body):
    """A frame with a NaN is what to find when a BEAM will not read it: it is not shown as text."""
    with pytest.raises(VerbatimError, match="float"):
        read(b"\x83" + body)


def test_every_cut_of_a_term_is_refused():
    """A prefix is never taken for a whole term, and trailing bytes are seen."""
    whole = write([A, 1, -5, 2**70, 1.5, b"xyz", (B,), Pairs([(A, [1, 2])]), Bits(b"\x80", 1)])
    for end in range(len(whole)):
        with pytest.raises(VerbatimError):
            read(whole[:end])
    with pytest.raises(VerbatimError, match="1 byte more"):
        read(whole + b"\0")


def test_a_length_beyond_the_end_is_refused_before_anything_is_made():
    """Four billion elements in six bytes are an error, at once."""
    for tag in (b"l", b"i", b"t", b"m", b"o"):
        with pytest.raises(VerbatimError):
            read(b"\x83" + tag + b"\xff\xff\xff\xff\x01")


def struct(module, **fields):
    pairs = [(Name("__struct__"), Name(f"Elixir.{module}"))]
    return Pairs(pairs + [(Name(key), value) for key, value in fields.items()])


ISO = {"calendar": Name("Elixir.Calendar.ISO")}
DATE = ISO | {"year": 2024, "month": 1, "day": 2}
TIME = ISO | {"hour": 3, "minute": 4, "second": 5, "microsecond": (6000, 3)}
UTC = {"utc_offset": 0, "std_offset": 0, "zone_abbr": b"UTC", "time_zone": b"Etc/UTC"}
CET = {"utc_offset": 3600, "std_offset": 0, "zone_abbr": b"CET", "time_zone": b"Europe/Paris"}


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (struct("Date", **DATE), "~D[2024-01-02]"),
        (struct("Time", **TIME), "~T[03:04:05.006]"),
        (struct("NaiveDateTime", **(TIME | DATE)), "~N[2024-01-02 03:04:05.006]"),
        (struct("DateTime", **(TIME | DATE | UTC)), "~U[2024-01-02 03:04:05.006Z]"),
        (
            struct("DateTime", **(TIME | DATE | CET)),
            "#DateTime<2024-01-02 03:04:05.006+01:00 CET Europe/Paris>",
        ),
        (struct("MapSet", map=Pairs([(1, []), (A, [])]), version=2), "MapSet.new([1, :a])"),
        (struct("Range", first=1, last=3, step=1), "1..3"),
        (struct("Range", first=3, last=1, step=-1), "3..1//-1"),
        (struct("Decimal", sign=-1, coef=150, exp=-2), 'Decimal.new("-1.50")'),
        (struct("Decimal", sign=1, coef=15, exp=3), 'Decimal.new("1.5E+4")'),
        (struct("Decimal", sign=1, coef=Name("NaN"), exp=0), 'Decimal.new("NaN")'),
        (struct("Foo.Bar", a=1), "%Foo.Bar{a: 1}"),
        (struct("Date", year=b"odd"), '%Date{year: "odd"}'),
        (struct("Decimal", sign=1, coef=[1], exp=0), "%Decimal{sign: 1, coef: [1], exp: 0}"),
        (Pairs([(b"a", 1), (A, 2)]), '%{"a" => 1, :a => 2}'),
    ],
)
def test_structs_are_shown_as_elixir_shows_them(term, text):
    """Sigils for the calendar, calls for sets and decimals, `%Module{}` for the rest."""
    assert format_elixir(term) == text


NAMES = sorted({*DATE, *TIME, *UTC, "map", "first", "last", "step", "sign", "coef", "exp"})
ODD = st.sampled_from([10**5000, -(10**5000), 2**70, -1, 0, 1, 1.5, [], (10**5000, 6), (1, 2**70)])
MODULES = ["Date", "Time", "NaiveDateTime", "DateTime", "MapSet", "Range", "Decimal"]


@given(
    st.sampled_from(MODULES),
    st.sampled_from([{}, DATE | TIME | UTC, DATE | TIME | CET, {"sign": 1, "coef": 1, "exp": 1}]),
    st.dictionaries(st.sampled_from(NAMES), ODD | terms, max_size=4),
)
def test_a_struct_is_shown_whatever_its_fields_hold(module, usual, odd):
    """Nobody keeps a frame from saying that the year is a list, or has 5,000 digits."""
    assert format_elixir(struct(module, **(usual | odd)))
