"""Objects with fields are maps of their fields, and containers what they contain."""

from __future__ import annotations

import array
import collections
import dataclasses
import io
import types
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import ClassVar

import pytest

attr = pytest.importorskip("attr", reason="attrs is in the group values only")
msgspec = pytest.importorskip("msgspec", reason="msgspec is in the group values only")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is in the group tables only")
pydantic = pytest.importorskip("pydantic", reason="pydantic is in the group values only")
pydantic_v1 = pytest.importorskip("pydantic.v1", reason="pydantic 2 has it")


@dataclass
class Plain:
    counter: ClassVar[int] = 0
    scale: InitVar[int] = 2
    a: int = 1
    _: KW_ONLY
    b: list[int] = dataclasses.field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Slotted:
    a: int


@dataclass
class Child(Plain):
    c: str = "c"


@attr.s
class OldAttrs:
    a = attr.ib()
    _hidden = attr.ib(default=1)


@attr.define
class NewAttrs:
    a: int
    b: dict[str, int] = attr.Factory(dict)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int
    b: Slotted | None = None
    _private: int = pydantic.PrivateAttr(1)

    @property
    def computed(self):
        raise AssertionError


class Aliased(pydantic.BaseModel):
    a: int = pydantic.Field(alias="A")


class Root(pydantic.RootModel):
    root: list[int]


@pydantic.dataclasses.dataclass
class PydanticDataclass:
    a: int


class ModelV1(pydantic_v1.BaseModel):
    a: int
    b: list[int] = []  # noqa: RUF012


class RootV1(pydantic_v1.BaseModel):
    __root__: list[int]


class Spec(msgspec.Struct):
    a: int
    b: int | msgspec.UnsetType = msgspec.UNSET


class Tagged(msgspec.Struct, tag=True, frozen=True):
    a: list[int]


CASES = [
    (Plain(), {"a": 1, "b": []}),
    (Child(scale=3, a=2, b=[1]), {"a": 2, "b": [1], "c": "c"}),
    (Slotted(1), {"a": 1}),
    (OldAttrs(1), {"a": 1, "_hidden": 1}),
    (NewAttrs(1, {"x": 2}), {"a": 1, "b": {"x": 2}}),
    (Model(a=1, b=Slotted(2), more=3), {"a": 1, "b": {"a": 2}, "more": 3}),
    (Aliased(A=1), {"a": 1}),
    (Root([1, 2]), [1, 2]),
    (PydanticDataclass(1), {"a": 1}),
    (ModelV1(a=1), {"a": 1, "b": []}),
    (RootV1(__root__=[1]), [1]),
    (Spec(1), {"a": 1}),
    (Spec(1, 2), {"a": 1, "b": 2}),
    (Tagged([1]), {"a": [1]}),
    (collections.deque([1, 2], maxlen=2), [1, 2]),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    ({"a": 1}.items(), [("a", 1)]),
    (collections.OrderedDict(a=1).keys(), ["a"]),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (types.SimpleNamespace(a=1, b=[2]), {"a": 1, "b": [2]}),
    (array.array("d", [1.5, 2.5]), [1.5, 2.5]),
    (array.array("i"), []),
    (io.BytesIO(b"\xff"), b"\xff"),
    (pyarrow.py_buffer(b"\xff"), b"\xff"),
    (pyarrow.py_buffer(b"abcd").slice(1, 2), b"bc"),
    (pyarrow.allocate_buffer(0, resizable=True), b""),
    (pyarrow.array([1, 2], pyarrow.int8()).buffers()[1], b"\x01\x02"),
    (collections.ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
    (collections.UserDict(a=1), {"a": 1}),
    (collections.UserList([1]), [1]),
    (collections.UserString("a"), "a"),
]


@pytest.mark.parametrize(("value", "plain"), CASES, ids=lambda value: type(value).__name__)
def test_they_are_what_they_hold(codec, value, plain):
    """At the top and inside of others."""
    assert codec.encode(value) == codec.encode(plain)
    assert codec.encode([{"x": value}]) == codec.encode([{"x": plain}])


def test_a_subclass_is_one_as_well(codec):
    """As everywhere, the nearest base with a conversion decides."""

    class Queue(collections.deque):
        pass

    class Deeper(Model):
        c: int = 3

    assert codec.encode(Queue([1])) == codec.encode([1])
    assert codec.encode(Deeper(a=1)) == codec.encode({"a": 1, "b": None, "c": 3})


def test_a_position_in_a_file_is_not_looked_at(codec):
    """The whole contents leave, and reading goes on where it was."""
    file = io.BytesIO(b"abc")
    file.read(1)
    assert codec.encode(file) == codec.encode(b"abc")
    assert file.read() == b"bc"


def test_a_large_buffer_of_arrow_leaves_by_reference(codec):
    """Its memory is held until the frame is written, and is not copied."""
    data = bytes(100_000)
    head, sent, *_rest = codec.encode_parts(pyarrow.py_buffer(data))
    assert len(head) < 100
    assert pyarrow.py_buffer(sent).address == pyarrow.py_buffer(data).address
    assert len(sent) == len(data)
