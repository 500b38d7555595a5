"""The functions of a module, as `use PyPort.Module` reads them."""

import collections.abc
import json
import math
import typing

import pytest

from port_server.cli.functions import functions_of, spec_of


@pytest.mark.parametrize(
    ("hint", "spec"),
    [
        (int, "integer()"),
        (float, "float()"),
        (str, "String.t()"),
        (None, "nil"),
        (list, "list()"),
        (list[int], "[integer()]"),
        (collections.abc.Sequence[str], "[String.t()]"),
        (dict[str, int], "%{optional(String.t()) => integer()}"),
        (dict, "map()"),
        (tuple[int, str], "{integer(), String.t()}"),
        (tuple[int, ...], "tuple()"),
        (typing.Optional[int], "integer() | nil"),  # noqa: UP045
        (int | str, "integer() | String.t()"),
        (typing.Any, "term()"),
        (typing.Literal["a"], "term()"),
        ([], "term()"),
    ],
)
def test_types(hint, spec):
    assert spec_of(hint) == spec


def test_an_argument_that_is_a_float_may_be_an_integer():
    assert spec_of(list[float], given=True) == "[number()]"


def test_functions_in_c_and_those_without_a_signature():
    found = {one["name"]: one for one in functions_of(math)}
    assert {"sqrt", "gcd", "log"} <= set(found)
    assert "pi" not in found
    assert found["gcd"]["var"] is True


def test_only_what_the_module_lists():
    assert {one["name"] for one in functions_of(json)} == {"dump", "dumps", "load", "loads"}
