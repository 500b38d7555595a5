"""Checks code without running it: whether it compiles, and the names it uses.

Used before there is a request: by the Elixir compiler, which checks sigils, and by
`PyPort.Interactive`, which binds variables.
"""

from __future__ import annotations

import _ast
from typing import Any, NamedTuple

from . import rewrite
from .snippet import ONLY_AST, compile_snippet


class Names(NamedTuple):
    """The names of a snippet.

    Attributes:
        bound: the names that its top level binds, as `Snippet.names`.
        deleted: those of them that a `del` at top level may unbind again.
        read: the names that are looked up as globals, at any depth, builtins included.
    """

    bound: frozenset[str]
    deleted: frozenset[str]
    read: frozenset[str]


def names_of(text: str) -> Names:
    """Tell which names `text` uses, if it compiles.

    Raises:
        SyntaxError: and what else compile() raises.
    """
    snippet = compile_snippet(text)
    snippet.source.remove(snippet.line, snippet.text)
    tree: Any = compile(text, "<syntax check>", "exec", ONLY_AST, dont_inherit=True)
    names = _Walk(tree.body)
    return Names(snippet.names, frozenset(names.deleted & snippet.names), frozenset(names.read))


class _Walk:
    """Walks a tree with the names that are local to the functions around a node."""

    __slots__ = ("deleted", "read")

    def __init__(self, body: list[Any]) -> None:
        self.read: set[str] = set()
        self.deleted: set[str] = set()
        nothing: frozenset[str] = frozenset()
        # No recursion, as in rewrite.Scope.
        stack: list[tuple[Any, frozenset[str]]] = [(node, nothing) for node in body]
        while stack:
            node, local = stack.pop()
            if isinstance(node, _ast.Name):
                self._name(node, local)
            elif isinstance(node, _ast.AugAssign) and isinstance(node.target, _ast.Name):
                # `x += 1` reads what it binds.
                if node.target.id not in local:
                    self.read.add(node.target.id)
                stack.append((node.value, local))
            elif isinstance(node, rewrite.FUNCTIONS):
                stack.extend((child, local) for child in _outside(node))
                body = node.body if isinstance(node.body, list) else [node.body]
                # `global x` in here means none of the functions around, which may have an x.
                inner = (local - _declared_global(body)) | _locals(node)
                stack.extend((child, inner) for child in body)
            elif isinstance(node, rewrite.COMPREHENSIONS):
                # Only its first iterable is evaluated outside.
                first = node.generators[0].iter
                stack.append((first, local))
                inner = local | _bound_by([part.target for part in node.generators])
                stack.extend((child, inner) for child in _inside(node) if child is not first)
            else:
                stack.extend((child, local) for child in rewrite.children(node))

    def _name(self, node: _ast.Name, local: frozenset[str]) -> None:
        if node.id in local:
            return
        if not isinstance(node.ctx, _ast.Store):
            self.read.add(node.id)
        if isinstance(node.ctx, _ast.Del):
            self.deleted.add(node.id)


def _parameters(function: Any) -> list[Any]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg]
    every += [*arguments.kwonlyargs, arguments.kwarg]
    return [parameter for parameter in every if parameter is not None]


def _outside(function: Any) -> list[Any]:
    """Give the parts of a function that are evaluated at its definition."""
    arguments = function.args
    parts = [*arguments.defaults, *arguments.kw_defaults, getattr(function, "returns", None)]
    parts += [parameter.annotation for parameter in _parameters(function)]
    parts += getattr(function, "decorator_list", [])
    return [part for part in parts if part is not None]


def _locals(function: Any) -> frozenset[str]:
    names = {parameter.arg for parameter in _parameters(function)}
    if isinstance(function.body, list):
        names |= rewrite.Scope(function.body).names - _declared_global(function.body)
    return frozenset(names)


def _declared_global(body: list[Any]) -> set[str]:
    names: set[str] = set()
    stack = list(body)
    while stack:
        node = stack.pop()
        if isinstance(node, _ast.Global):
            names.update(node.names)
        elif not isinstance(node, (*rewrite.FUNCTIONS, _ast.ClassDef)):
            stack.extend(rewrite.children(node))
    return names


def _bound_by(targets: list[Any]) -> frozenset[str]:
    names: set[str] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if isinstance(node, _ast.Name) and isinstance(node.ctx, _ast.Store):
            names.add(node.id)
        stack.extend(rewrite.children(node))
    return frozenset(names)


def _inside(comprehension: Any) -> list[Any]:
    """Give the parts of a comprehension."""
    parts = [getattr(comprehension, name, None) for name in ("elt", "key", "value")]
    for generator in comprehension.generators:
        parts += [generator.target, generator.iter, *generator.ifs]
    return [part for part in parts if part is not None]
