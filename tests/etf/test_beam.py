"""The real BEAM as judge: what it writes is read, what comes back is `=:=` what it wrote."""

import datetime as dt
import decimal
import pathlib
import shutil
import subprocess
import textwrap

import pytest

from port_server.etf import Atom, BitString, ImproperList, LocalTerm, Struct, set_templates

HERE = pathlib.Path(__file__).parent
pytestmark = [
    pytest.mark.beam,
    pytest.mark.skipif(shutil.which("erl") is None, reason="no erl on the PATH"),
]


@pytest.fixture(scope="module")
def beam(tmp_path_factory):
    """Compile terms.erl once; give a function that runs its main."""
    where = tmp_path_factory.mktemp("beam")
    subprocess.run(["erlc", "-o", where, HERE / "terms.erl"], check=True)

    def run(*arguments):
        command = ["erl", "-noshell", "-pa", where, "-run", "terms", "main", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def written(beam, tmp_path_factory):
    """Give every term of terms.erl, in every way the BEAM writes it."""
    file = tmp_path_factory.mktemp("written") / "terms"
    plain, local = map(int, beam("write", file).split())
    frames = list(split(file.read_bytes()))
    assert len(frames) == plain + local
    assert plain > 500
    return frames[:plain], frames[plain:]


def split(data):
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def framed(data):
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("binary_as", ["bytes", "memoryview"])
@pytest.mark.parametrize("plain_structs", [False, True])
def test_what_the_beam_writes_comes_back_the_same(
    codec, beam, written, tmp_path, binary_as, plain_structs
):
    """Every kind of term, written in every way the BEAM has, survives the way through."""
    file = tmp_path / "pairs"
    with file.open("wb") as pairs:
        for frame in written[0]:
            value = codec.decode(frame, binary_as=binary_as, plain_structs=plain_structs)
            if value == b"\xff" and not plain_structs:
                continue  # %PyPort.Bytes{} is bytes here, and bytes go back as a binary
            pairs.write(framed(frame) + framed(codec.encode(value)))
    beam("compare", file)


@pytest.mark.slow
def test_text_comes_back_the_same(codec, beam, written, tmp_path):
    """In str mode, too, wherever a term's binaries are UTF-8; elsewhere the error says so."""
    file, refused = tmp_path / "pairs", 0
    with file.open("wb") as pairs:
        for frame in written[0]:
            try:
                value = codec.decode(frame)
            except ValueError as error:
                assert "is not UTF-8" in str(error)  # noqa: PT017
                refused += 1
                continue
            if value != b"\xff":
                pairs.write(framed(frame) + framed(codec.encode(value)))
    beam("compare", file)
    assert refused <= 15


def test_local_terms_come_back_bit_by_bit(codec, written):
    """What term_to_binary wrote with `local` is carried, as nobody else can read it (OTP 26)."""
    for frame in written[1]:
        value = codec.decode(frame)
        assert type(value) is LocalTerm
        assert codec.encode(value) == frame


DATE = (
    "#{'__struct__' => 'Elixir.Date', calendar => 'Elixir.Calendar.ISO',"
    " year => 999, month => 2, day => 28}"
)
PYTHON_VALUES = [
    (None, "nil"),
    (True, "true"),
    (Atom("with space"), "'with space'"),
    (Atom("é€"), "'é\\x{20ac}'"),
    (2**70, "1 bsl 70"),
    (-(2**31), "-(1 bsl 31)"),
    (-(2**63), "-(1 bsl 63)"),
    (-(2**64), "-(1 bsl 64)"),
    (1 << 20000, "1 bsl 20000"),
    (1.5, "1.5"),
    (-0.0, "-0.0"),
    (float("inf"), "infinity"),
    (float("-inf"), "neg_infinity"),
    (float("nan"), "nan"),
    ("é", "<<195,169>>"),
    (b"\xff", "<<255>>"),
    (bytearray(b"ab"), "<<97,98>>"),
    (memoryview(b"abc")[::2], "<<97,99>>"),
    ([1, 2, 3], "[1,2,3]"),
    (list(b"abc"), '"abc"'),
    ((), "{}"),
    (tuple(range(300)), "list_to_tuple(lists:seq(0,299))"),
    ({"a": [1], Atom("b"): {}}, "#{<<97>> => [1], b => #{}}"),
    (BitString(b"\xa0", 3), "<<5:3>>"),
    (ImproperList([1, 2], 3), "[1,2|3]"),
    (
        {1, 2},
        "#{'__struct__' => 'Elixir.MapSet', map => #{1 => [], 2 => []}, version => 2}",
    ),
    (range(1, 4), "#{'__struct__' => 'Elixir.Range', first => 1, last => 3, step => 1}"),
    (
        decimal.Decimal("-1.50"),
        "#{'__struct__' => 'Elixir.Decimal', sign => -1, coef => 150, exp => -2}",
    ),
    (
        dt.date(999, 2, 28),
        DATE,
    ),
    (Struct("Elixir.User", {"age": 7}), "#{'__struct__' => 'Elixir.User', age => 7}"),
]


def test_python_values_are_read_by_the_beam(codec, beam, tmp_path):
    """The BEAM's own reader accepts what is written here, and it is the value meant."""
    file = tmp_path / "pairs"
    with file.open("wb") as pairs:
        for value, text in PYTHON_VALUES:
            pairs.write(framed(text.encode()) + framed(codec.encode(value)))
    beam("evaluate", file)


@pytest.mark.skipif(shutil.which("elixir") is None, reason="no elixir on the PATH")
def test_structs_are_elixirs_own(codec, tmp_path):
    """What Elixir inspects after the way through Python is what it inspected before."""
    script = tmp_path / "structs.exs"
    script.write_text(
        textwrap.dedent("""
        values = [MapSet.new([1, "a", MapSet.new([2])]), 1..10//3, 10..1//-1, 1..0//1,
          ~D[2024-02-29], ~T[23:59:59], ~T[23:59:59.123456], ~N[2024-02-29 01:02:03],
          ~U[2024-02-29 01:02:03.000004Z],
          %URI{host: "example.org", port: 80}, ~r/x/.source, %ArgumentError{message: "no"}]
        case System.argv() do
          ["write", file] ->
            File.write!(file, :erlang.term_to_binary({values, MapSet.new()}))
          ["compare", file] ->
            {back, empty} = :erlang.binary_to_term(File.read!(file))
            for {a, b} <- Enum.zip(values, back), a !== b, do: raise(inspect({a, b}))
            unless length(back) == length(values) and empty === MapSet.new(), do: raise("lost some")
        end
        """)
    )
    file = tmp_path / "term"
    subprocess.run(["elixir", script, "write", file], check=True, timeout=60)
    data = file.read_bytes()
    values, _ = codec.decode(data)
    assert values[4:6] == [dt.date(2024, 2, 29), dt.time(23, 59, 59)]
    assert values[0] == {1, "a", frozenset({2})}
    assert type(values[9]) is Struct
    # A MapSet has another field from one Elixir to the next; its owner sends an empty one to copy.
    _values, empty = codec.decode(data, plain_structs=True)
    set_templates({"map_set": empty})
    try:
        file.write_bytes(codec.encode(codec.decode(data)))
    finally:
        set_templates({})
    subprocess.run(["elixir", script, "compare", file], check=True, timeout=60)
