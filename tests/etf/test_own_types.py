"""Types of one's own: `register` with a class that has fields, `encoder` and `decoder`."""

import datetime as dt
from dataclasses import dataclass, field

import pytest

from port_server.etf import Atom, DecodeError, Struct, decoder, encoder, register, structs

attr = pytest.importorskip("attr", reason="attrs is in the group values only")
msgspec = pytest.importorskip("msgspec", reason="msgspec is in the group values only")
pydantic = pytest.importorskip("pydantic", reason="pydantic is in the group values only")


@pytest.fixture(autouse=True)
def restored():
    structs.learn_imported_types()  # each is learnt once, and would be forgotten
    tables = (structs.from_struct_by_module, structs.to_struct_by_type)
    tables += (structs.replacement_by_type, structs.quick_types)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    structs.registered_builtin_subtypes.clear()


@dataclass
class Money:
    amount: int
    currency: str = "EUR"
    tags: list[str] = field(default_factory=list)


@attr.define
class Attrs:
    amount: int
    _currency: str = "EUR"


class Pydantic(pydantic.BaseModel):
    amount: int
    currency: str = "EUR"


class Msgspec(msgspec.Struct):
    amount: int
    currency: str = "EUR"


@pytest.mark.parametrize("kind", [Money, Attrs, Pydantic, Msgspec])
def test_register_takes_a_class_with_fields_as_it_is(codec, kind):
    """Both ways, and inside of other values."""
    register("MyApp.Money", kind)
    value = kind(amount=5)
    term = codec.decode(codec.encode([value]), plain_structs=True)[0]
    assert term.module == "Elixir.MyApp.Money"
    assert term["amount"] == 5
    assert all(type(name) is Atom for name in term)
    assert codec.decode(codec.encode({"k": value})) == {"k": value}


def test_a_field_that_the_class_does_not_have_is_an_error(codec):
    register("MyApp.Money", Money)
    struct = Struct("Elixir.MyApp.Money", {Atom("amount"): 1, Atom("paid"): True})
    with pytest.raises(DecodeError, match=r"a MyApp.Money could not be converted: TypeError.*paid"):
        codec.decode(codec.encode(struct))


def test_encoder(codec):
    """For the type and its subclasses, before any other conversion of theirs."""

    class Euro(Money):
        pass

    class Text(str):
        __slots__ = ()

    @encoder(Money)
    def amount(money):
        return (money.currency, money.amount)

    encoder(Text)(len)
    encoder(dt.timedelta)(dt.timedelta.total_seconds)
    encoder(dt.date)(dt.date.isoformat)
    assert amount(Money(1)) == ("EUR", 1)
    assert codec.encode([Money(1), Euro(2)]) == codec.encode([("EUR", 1), ("EUR", 2)])
    assert codec.encode(Text("abc")) == codec.encode(3)
    assert codec.encode(dt.timedelta(seconds=1.5)) == codec.encode(1.5)
    assert codec.encode(dt.date(2024, 1, 2)) == codec.encode("2024-01-02")
    register("MyApp.Money", Money)  # the last one counts
    assert codec.decode(codec.encode(Money(1)), plain_structs=True).module == "Elixir.MyApp.Money"


def test_decoder(codec):
    @decoder("MyApp.Money")
    def money(fields):
        return Money(**fields)

    assert money({Atom("amount"): 1}) == Money(1)
    struct = Struct("Elixir.MyApp.Money", {Atom("amount"): 1})
    assert codec.decode(codec.encode([struct])) == [Money(1)]


def test_wrong_arguments():
    with pytest.raises(TypeError, match="takes a type"):
        encoder("Money")
    with pytest.raises(TypeError, match="the name of a module"):
        decoder(Money)
