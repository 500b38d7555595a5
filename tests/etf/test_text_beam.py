"""The same terms in the hands of the real BEAM: its text and ours, its parser and ours."""

import base64
import random
import re
import shutil
import subprocess

import pytest
from plain_terms import assortment

from port_server.etf.text.elixir import format_elixir
from port_server.etf.text.erlang import format_erlang
from port_server.etf.text.reader import TermReader, TextError, parse
from port_server.etf.text.verbatim import Improper, Name, Pairs, read, write

pytestmark = [
    pytest.mark.beam,
    pytest.mark.skipif(shutil.which("elixir") is None, reason="needs elixir on the PATH"),
]

# In: lines of three words, each in base64: a term's bytes, our Erlang text, our Elixir text.
# Out: what the BEAM prints for the term, whether it reads our two texts as that very term, and the
# term's bytes as it writes them. The terms that only a BEAM can make follow.
SCRIPT = r"""
defmodule Judge do
  def erlang(term), do: :io_lib.format('~0tp', [term]) |> :unicode.characters_to_binary()

  def elixir(term) do
    inspect(term, limit: :infinity, printable_limit: :infinity, width: :infinity,
      charlists: :as_lists)
  end

  def reads_erlang(text) do
    {:ok, tokens, _} = :erl_scan.string(String.to_charlist(text <> "."))
    {:ok, term} = :erl_parse.parse_term(tokens)
    term
  end

  def line(term, oks) do
    words = [erlang(term), elixir(term), oks, :erlang.term_to_binary(term)]
    IO.puts(Enum.map_join(words, " ", &("x" <> Base.encode64(&1))))
  end
end

for line <- IO.stream(:stdio, :line) do
  [bytes, erlang, elixir] =
    for "x" <> word <- String.split(line), do: Base.decode64!(word)

  term = :erlang.binary_to_term(bytes)
  same = fn f -> try do f.() === term rescue e -> Exception.message(e) end end
  in_elixir = same.(fn -> elem(Code.eval_string(elixir), 0) end)
  Judge.line(term, inspect({same.(fn -> Judge.reads_erlang(erlang) end), in_elixir}))
end

for term <- [self(), make_ref(), hd(Port.list()), &Enum.map/2, &:lists.map/2, &:erlang.+/2,
      :erlang.make_fun(:a, :"b c", 1), :erlang.make_fun(:a, :Foo, 1), {self(), [make_ref()]},
      MapSet.new([1, :a, "b"]), 1..3, 3..1//-1,
      ~D[2024-01-02], ~D[-0001-01-02], ~T[01:02:03.000450],
      ~N[2024-01-02 03:04:05], ~U[2024-01-02 03:04:05.6Z], %RuntimeError{message: "x"},
      %{DateTime.from_naive!(~N[2024-01-02 03:04:05], "Etc/UTC") |
        time_zone: "Europe/Paris", zone_abbr: "CET", utc_offset: 3600},
      Map.new(1..30, &{&1, &1}), Enum.to_list(1..300), :binary.copy("é", 300)] do
  Judge.line(term, "")
end
"""


def word(data):
    return "x" + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Give, per term, our bytes (or None) and the BEAM's four answers; one BEAM for all."""
    script = tmp_path_factory.mktemp("beam") / "judge.exs"
    script.write_text(SCRIPT, encoding="utf-8")
    terms = assortment()
    lines = [
        " ".join(
            word(data) for data in (write(t), format_erlang(t).encode(), format_elixir(t).encode())
        )
        for t in terms
    ]
    done = subprocess.run(
        ["elixir", "--erl", "+pc unicode", str(script)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [
        [base64.b64decode(word[1:]) for word in line.split(" ")]
        for line in done.stdout.splitlines()
    ]
    assert len(answers) > len(terms)
    return answers[: len(terms)], answers[len(terms) :]


def shown_alike(term):
    """Say whether `~tp` has no reason to depart: strings in lists, Latin-1, the order of maps."""
    waiting = [term]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list) and part:
            if all(isinstance(i, int) and (8 <= i <= 13 or i == 27 or i >= 32) for i in part):
                return False
            waiting += part
        elif isinstance(part, bytes):
            try:
                part.decode()
            except UnicodeDecodeError:
                return False
        elif isinstance(part, Pairs):
            waiting += [side for pair in part for side in pair]
        elif isinstance(part, tuple) and not isinstance(part, Name):
            waiting += part
    return True


def test_the_beam_reads_our_texts_as_the_same_terms(verdicts):
    """Erlang's parser and Elixir's evaluator both get back the very term that was shown."""
    assert [answer for answer in verdicts[0] if answer[2] != b"{true, true}"] == []


def test_our_elixir_text_is_that_of_inspect(verdicts):
    """Character for character, over every term, structs and functions included."""
    wrong = [
        (answer[1].decode(), format_elixir(read(answer[3])))
        for answer in [*verdicts[0], *verdicts[1]]
        if format_elixir(read(answer[3])) != answer[1].decode()
    ]
    assert wrong == []


def test_our_erlang_text_is_that_of_tp(verdicts):
    """The same but for the blanks that ~0tp leaves out and the two departures we document."""
    wrong = [
        (answer[0].decode(), format_erlang(read(answer[3])))
        for answer in [*verdicts[0], *verdicts[1]]
        if shown_alike(read(answer[3]))
        and squeezed(format_erlang(read(answer[3]))) != squeezed(answer[0].decode())
    ]
    assert wrong == []


def squeezed(text):
    return text.replace(", ", ",").replace(" | ", "|")


def test_we_read_what_the_beam_prints(verdicts):
    """Text copied from an Erlang shell goes in as the term it came from."""
    for answer in verdicts[0]:
        text = answer[0].decode()
        if shown_alike(read(answer[3])):
            assert format_erlang(parse(text)) == format_erlang(read(answer[3]))


TOKENS = [
    "#{",
    "=>",
    "<<",
    ">>",
    "a",
    "'q'",
    "1",
    "2",
    "1.5",
    "$a",
    '"s"',
    "16#f",
    " ",
    "  ",
    "utf8",
]
TOKENS += ["8", "float", "\n", "1_0", "_", "A", "end", "\\", "#", "2#1", "\\^", *"[]{},|.%-+/:'\""]
VALUES = ["1", "-1", "300", "2.5", '"ab"', '"é"', "$a"]
SIZES = ["", ":8", ":16", ":3", ":0", ":32"]
TYPES = ["", "", "/little", "/utf8", "/float", "/signed-little", "/unit:8", "/utf16-little", "/big"]

# In: texts in base64. Out: the term that Erlang's own scanner and parser make of each, or nothing.
PARSER = r"""
for line <- IO.stream(:stdio, :line) do
  text = line |> String.trim() |> Base.decode64!() |> String.to_charlist()

  with {:ok, tokens, _} <- :erl_scan.string(text ++ ' .\n'),
       {:ok, term} <- :erl_parse.parse_term(tokens) do
    IO.puts("x" <> Base.encode64(:erlang.term_to_binary(term)))
  else
    _ -> IO.puts("x")
  end
end
"""


def distorted(count=3000, seed=4):
    """Give texts that are almost terms: token soup, odd binaries, good terms with a slip."""
    draw = random.Random(seed)
    good = [format_erlang(term) for term in assortment(200)]
    good = [text for text in good if len(text) < 300]
    for number in range(count):
        if number % 3 == 0:
            yield "".join(draw.choices(TOKENS, k=draw.randrange(1, 9)))
        elif number % 3 == 1:
            segments = (
                draw.choice(VALUES) + draw.choice(SIZES) + draw.choice(TYPES)
                for _ in range(draw.randrange(1, 3))
            )
            yield f"<<{','.join(segments)}>>"
        else:
            text = draw.choice(good)
            at = draw.randrange(len(text) + 1)
            yield text[:at] + draw.choice([*TOKENS, ""]) + text[at + draw.randrange(2) :]


def only_term(text):
    """Give the one term of a text, or None where it is refused or more than one."""
    reader = TermReader()
    reader.feed(text + " .\n")
    reader.close()
    try:
        term = reader.next_term()
        return None if reader.next_term() is not None else term
    except TextError:
        return None


def in_any_order(term):
    """Give something to compare by: types and values, and maps without their order."""
    if isinstance(term, Pairs):
        return sorted(repr((in_any_order(key), in_any_order(value))) for key, value in term)
    if isinstance(term, Improper):
        return (in_any_order(term.items), in_any_order(term.tail))
    if type(term) in (list, tuple):
        return (type(term), [in_any_order(item) for item in term])
    return repr(term)


def test_we_take_and_refuse_what_erlang_does(tmp_path):
    """Thousands of slips: what Erlang refuses we refuse, what it takes we take as the same term."""
    script = tmp_path / "parser.exs"
    script.write_text(PARSER, encoding="utf-8")
    texts = list(distorted())
    done = subprocess.run(
        ["elixir", str(script)],
        input="".join(base64.b64encode(text.encode()).decode() + "\n" for text in texts),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = [base64.b64decode(line[1:]) for line in done.stdout.splitlines()]
    assert len(answers) == len(texts)
    assert sum(answer != b"" for answer in answers) > 500
    wrong = []
    for text, answer in zip(texts, answers, strict=True):
        theirs = in_any_order(read(answer)) if answer else None
        term = only_term(text)
        ours = None if term is None else in_any_order(term)
        # "a""b": strings that touch are one string up to OTP 26, and a mistake from OTP 27 on.
        # 16#f.8: a float from OTP 28 on.
        known = (theirs is None and '""' in text) or (ours is None and re.search(r"#\w+\.", text))
        if ours != theirs and not known:
            wrong.append((text, theirs, ours))
    assert wrong == []
