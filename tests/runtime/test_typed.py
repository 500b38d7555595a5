"""Arguments of a typed call are what the type hints of the function say."""

import collections
import dataclasses
import enum
import functools
import typing
from typing import Annotated, Any, NamedTuple, NewType, Optional, TypedDict

import pytest

from port_server.etf import Atom, DecodeError
from port_server.runtime.typed import bind

attr = pytest.importorskip("attr", reason="attrs is in the group values only")
msgspec = pytest.importorskip("msgspec", reason="msgspec is in the group values only")
pydantic = pytest.importorskip("pydantic", reason="pydantic is in the group values only")
pydantic_v1 = pytest.importorskip("pydantic.v1", reason="pydantic 2 has it")


class Color(enum.Enum):
    RED = "r"
    BLUE = 2


@dataclasses.dataclass
class Item:
    name: str
    color: Color = Color.RED
    price: "int | None" = None


@dataclasses.dataclass
class Order:
    items: list[Item]
    by_name: dict[str, Item] = dataclasses.field(default_factory=dict)
    total: int = dataclasses.field(init=False, default=0)


@attr.define
class Attrs:
    _item: Item
    n: int = 0


class Model(pydantic.BaseModel):
    a: int
    color: Color = Color.RED


class ModelV1(pydantic_v1.BaseModel):
    a: int


class Spec(msgspec.Struct):
    a: int


class Typed(TypedDict):
    item: Item


class Point(NamedTuple):
    x: int
    item: Item | None = None


Id = NewType("Id", Item)
ITEM = {Atom("name"): "a", "color": "r"}


def returned(hint):
    def function(value):
        return value

    function.__annotations__ = {"value": hint}
    return lambda value: bind(function, [value], {})[0][0]


@pytest.mark.parametrize(
    ("hint", "given", "made"),
    [
        (Item, ITEM, Item("a")),
        (Item, {"name": "a", "color": "BLUE", "price": 1}, Item("a", Color.BLUE, 1)),
        (Item, {"name": "a", "color": 2}, Item("a", Color.BLUE)),
        (Order, {"items": [ITEM], "by_name": {"k": ITEM}}, Order([Item("a")], {"k": Item("a")})),
        (Attrs, {"_item": ITEM}, Attrs(Item("a"))),
        (Model, {Atom("a"): "1", "color": "r"}, Model(a=1)),
        (ModelV1, {"a": 1}, ModelV1(a=1)),
        (Spec, {Atom("a"): 1}, Spec(1)),
        (Typed, {"item": ITEM}, {"item": Item("a")}),
        (Point, {"x": 1, "item": ITEM}, Point(1, Item("a"))),
        (Point, [1], Point(1)),
        (Optional[Item], None, None),  # noqa: UP045
        (Item | None, ITEM, Item("a")),
        (int | Item, ITEM, Item("a")),
        (str | Color, "BLUE", "BLUE"),
        (Color | None, "BLUE", Color.BLUE),
        (Id, ITEM, Item("a")),
        (Annotated[Item, "x"], ITEM, Item("a")),
        (list[Item], [ITEM], [Item("a")]),
        (collections.abc.Sequence[Item], [ITEM], [Item("a")]),
        (collections.abc.Iterable[Color], ["r"], [Color.RED]),
        (tuple[Item, int], [ITEM, 1], (Item("a"), 1)),
        (tuple[Color, ...], ["r", 2], (Color.RED, Color.BLUE)),
        (set[Color], ["r"], {Color.RED}),
        (collections.deque, [1], collections.deque([1])),
        (dict[str, Item], {"k": ITEM}, {"k": Item("a")}),
        (collections.abc.Mapping[str, list[Item]], {"k": [ITEM]}, {"k": [Item("a")]}),
        (Any, ITEM, ITEM),
        (typing.TypeVar("T"), ITEM, ITEM),
        (int, "1", "1"),
        (Item, Item("b"), Item("b")),
        (None, ITEM, ITEM),
    ],
    ids=repr,
)
def test_values_are_made(hint, given, made):
    value = returned(hint)(given)
    assert value == made
    assert type(value) is type(made)


def test_wherever_the_argument_stands():
    def function(a: Item, *rest: Item, b: Item, **more: Item):  # noqa: ARG001
        raise AssertionError

    args, keywords = bind(function, [ITEM, ITEM, ITEM], {"b": ITEM, "c": ITEM})
    assert args == (Item("a"),) * 3
    assert keywords == {"b": Item("a"), "c": Item("a")}


def test_whatever_is_called():
    """Methods, classes, partial functions, objects that can be called, and functions in C."""

    class Holder:
        def __init__(self, item: Item):
            self.item = item

        def method(self, item: Item):
            return item

        @classmethod
        def of(cls, item: Item):
            return cls(item)

        def __call__(self, item: Item):
            return item

    holder = Holder(Item("b"))
    for target in (Holder, holder, holder.method, Holder.of, functools.partial(holder.method)):
        assert bind(target, [ITEM], {}) == ((Item("a"),), {})
    assert bind(Order, [[ITEM]], {})[0] == ([Item("a")],)
    assert bind(Attrs, [ITEM], {})[0]
    assert bind(len, [[1]], {}) == (([1],), {})
    assert bind(max, [1, 2], {}) == ((1, 2), {})


@pytest.mark.parametrize(
    ("hint", "given", "message"),
    [
        (Color, "green", r"\[0\]: 'green' is no Color. Its members are 'RED', 'BLUE'"),
        (
            Order,
            {"items": [ITEM, {"name": "a", "color": 7}]},
            r'\[0\]\["items"\]\[1\]\["color"\]: 7',
        ),
        (
            Item,
            {"name": "a", "colour": 1},
            r"\[0\]: Item has no field 'colour'. Its fields are 'nam",
        ),
        (Item, {}, r"\[0\]: Item needs 'name'"),
        (Item | None, {"nam": 1}, r"\[0\]: Item has no field 'nam'"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(hint, given, message):
    with pytest.raises(DecodeError, match=message):
        returned(hint)(given)


def test_hints_that_cannot_be_read_are_an_error_that_names_them():
    def function(a: "Missing"):  # noqa: ARG001, F821
        raise AssertionError

    with pytest.raises(DecodeError, match=r"hints of .*function cannot be read: name 'Missing'"):
        bind(function, [1], {})


def test_wrong_arguments_are_a_type_error_as_always():
    with pytest.raises(TypeError, match="missing a required argument"):
        bind(returned(Item), [], {})
