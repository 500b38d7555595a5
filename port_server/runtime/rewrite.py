"""Syntax trees of snippets: the kind of the code, and the function made of it. Runs no code.

Works on the C `_ast` classes: the ast module costs 6 to 10 ms to import, and only a walk of it is
needed, which is short.
"""

from __future__ import annotations

import _ast
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

# Bodies of these are scopes of their own: their names do not belong to the snippet.
FUNCTIONS: Final = (_ast.FunctionDef, _ast.AsyncFunctionDef, _ast.Lambda)
COMPREHENSIONS: Final = (_ast.ListComp, _ast.SetComp, _ast.DictComp, _ast.GeneratorExp)
_TRIES: Final = (_ast.Try, _ast.TryStar)

# An exception that a signal handler raises at the jump back of a `while` loop may miss the `try`
# that the loop stands in, and with it `except`, `finally` and `with`:
# - On 3.11 and 3.12 it counts as raised by the instruction before the loop. If the loop is the
#   first statement of the `try`, on the same line as its `while`, that is outside.
# - On 3.13 the jump back of a loop with a condition, `while n: ...`, belongs to no `try` at all.
_JUMPS_BEFORE_LOOP: Final = sys.version_info < (3, 13)


def children(node: _ast.AST) -> Iterator[_ast.AST]:
    """Give the nodes right below `node`."""
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, _ast.AST):
            yield value
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, _ast.AST):
                    yield item


def _own(node: _ast.AST) -> list[_ast.AST]:
    """Give the nodes below `node` that are evaluated in the same scope as `node` itself."""
    if isinstance(node, FUNCTIONS):
        arguments = node.args
        own: list[Any] = [*arguments.defaults, *arguments.kw_defaults]
        if not isinstance(node, _ast.Lambda):
            own += node.decorator_list
        return [item for item in own if item is not None]
    if isinstance(node, _ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords]
    return list(children(node))


class Scope:
    """The contents of the top level of a snippet.

    Attributes:
        returns: the first top-level `return`, or None.
        yields: the first top-level `yield` or `yield from`, or None.
        awaits: the first top-level `await`, `async for` or `async with`, or None.
        star_import: the first top-level `from m import *`, or None.
        names: the names bound at top level.
    """

    __slots__ = ("awaits", "names", "returns", "star_import", "yields")

    def __init__(self, body: list[Any]) -> None:
        self.returns: Any = None
        self.yields: Any = None
        self.awaits: Any = None
        self.star_import: Any = None
        self.names: set[str] = set()
        # A list of nodes to visit instead of recursion: a long chain of `a + b + c ...` is deep.
        stack: list[tuple[_ast.AST, bool]] = [(node, False) for node in reversed(body)]
        while stack:
            node, comprehension = stack.pop()
            self._visit(node, comprehension=comprehension)
            inner = comprehension or isinstance(node, COMPREHENSIONS)
            stack.extend((child, inner) for child in reversed(_own(node)))

    def _visit(self, node: _ast.AST, *, comprehension: bool) -> None:
        if isinstance(node, _ast.Name):
            # A comprehension's own variables stay in it.
            if not comprehension and isinstance(node.ctx, (_ast.Store, _ast.Del)):
                self.names.add(node.id)
        elif isinstance(node, _ast.NamedExpr):
            self.names.add(node.target.id)  # binds outside of the comprehension it stands in
        elif isinstance(node, (_ast.FunctionDef, _ast.AsyncFunctionDef, _ast.ClassDef)):
            self.names.add(node.name)
        elif isinstance(node, _ast.Return):
            self.returns = self.returns or node
        elif isinstance(node, (_ast.Yield, _ast.YieldFrom)):
            self.yields = self.yields or node
        elif isinstance(node, (_ast.Await, _ast.AsyncFor, _ast.AsyncWith)):
            self.awaits = self.awaits or node
        elif isinstance(node, _ast.comprehension):
            # `(x async for x in y)` is an async generator and awaits nothing by itself, but is an
            # error outside of async code before 3.13 has looked at it: treat them alike.
            if node.is_async:
                self.awaits = self.awaits or node.target
        elif isinstance(node, _ast.Import):
            self.names.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, _ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    self.star_import = self.star_import or node
                elif node.module != "__future__":
                    self.names.add(alias.asname or alias.name)
        elif isinstance(node, (_ast.ExceptHandler, _ast.MatchAs, _ast.MatchStar)):
            if node.name is not None:
                self.names.add(node.name)
        elif isinstance(node, _ast.MatchMapping) and node.rest is not None:
            self.names.add(node.rest)


# Functions of asyncio that work only where a loop runs, and give something to await.
LOOP_FUNCTIONS: Final = ("gather", "create_task", "ensure_future", "shield")


def await_last_call(tree: Any) -> bool:
    """Put `await` before a last line like `asyncio.gather(...)`; tell whether it was one.

    Without it the function would be called in a thread without a running loop.
    """
    last: Any = tree.body[-1] if tree.body else None
    call = getattr(last, "value", None)
    if not (isinstance(last, _ast.Expr) and isinstance(call, _ast.Call)):
        return False
    modules: set[Any] = {"asyncio"}
    functions: set[str] = set()
    for node in tree.body:
        if isinstance(node, _ast.Import):
            modules.update(alias.asname for alias in node.names if alias.name == "asyncio")
        elif isinstance(node, _ast.ImportFrom) and node.module == "asyncio":
            functions.update(
                alias.asname or alias.name for alias in node.names if alias.name in LOOP_FUNCTIONS
            )
    called = call.func
    if isinstance(called, _ast.Attribute):
        known = called.attr in LOOP_FUNCTIONS and getattr(called.value, "id", None) in modules
    else:
        known = getattr(called, "id", None) in functions
    if known:
        last.value = placed(_ast.Await(value=call), call)
    return known


def placed(node: Any, like: Any) -> Any:
    """Put `node` at the place of `like` in the source."""
    node.lineno = like.lineno
    node.col_offset = like.col_offset
    node.end_lineno = like.end_lineno
    node.end_col_offset = like.end_col_offset
    return node


def is_future_import(statement: Any) -> bool:
    """Tell whether it is `from __future__ import ...`, which must stay at a module's top."""
    return isinstance(statement, _ast.ImportFrom) and statement.module == "__future__"


def as_function(body: list[Any], names: set[str], *, is_async: bool, value: bool) -> Any:
    """Make a module that defines one function of `body`, called `<module>` as its frames should be.

    Args:
        body: the statements; what must stay at a module's top is taken out.
        names: what they bind; it stays global.
        is_async: whether the function is to be one.
        value: whether the last expression becomes what the function returns.
    """
    first = body[0]
    future = [statement for statement in body if is_future_import(statement)]
    inner = [_without_annotation(statement) for statement in body if statement not in future]
    if value and inner and isinstance(inner[-1], _ast.Expr):
        tail = inner[-1]
        if not isinstance(tail.value, (_ast.Yield, _ast.YieldFrom)):
            inner[-1] = placed(_ast.Return(value=tail.value), tail)
    if names:
        inner.insert(0, placed(_ast.Global(names=sorted(names)), first))
    parts: dict[str, Any] = {
        "name": "<module>",
        "args": _ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[]),
        "body": inner or [placed(_ast.Pass(), first)],
        "decorator_list": [],
    }
    if sys.version_info >= (3, 12):
        parts["type_params"] = []
    function = (_ast.AsyncFunctionDef if is_async else _ast.FunctionDef)(**parts)
    return _ast.Module(body=[*future, placed(function, first)], type_ignores=[])


def _without_annotation(statement: Any) -> Any:
    # "annotated name 'x' can't be global": `x: int = 1` becomes `x = 1`, and `x: int` nothing.
    # Blocks in the snippet's own scope are gone through as well, functions and classes are not.
    if isinstance(statement, _ast.AnnAssign) and isinstance(statement.target, _ast.Name):
        if statement.value is None:
            return placed(_ast.Pass(), statement)
        return placed(_ast.Assign(targets=[statement.target], value=statement.value), statement)
    if isinstance(statement, (*FUNCTIONS, _ast.ClassDef)):
        return statement
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            setattr(statement, name, [_without_annotation(item) for item in block])
    for name in ("handlers", "cases"):
        for part in getattr(statement, name, ()):
            part.body = [_without_annotation(item) for item in part.body]
    return statement


def let_loops_be_interrupted(tree: Any) -> None:
    """Change `while` loops so that what a signal raises in them is caught around them."""
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if _JUMPS_BEFORE_LOOP:
            if isinstance(node, _TRIES) and isinstance(node.body[0], _ast.While):
                _put_step(node.body)
        elif (
            isinstance(node, _ast.While)
            and not node.orelse
            and not isinstance(node.test, _ast.Constant)
        ):
            _move_condition(node)
        stack.extend(children(node))


def _put_step(body: list[Any]) -> None:
    """Put a statement without effect before the loop.

    An empty list, because the compiler drops `pass` and constants.
    """
    loop = body[0]
    nothing = placed(_ast.List(elts=[], ctx=_ast.Load()), loop)
    body.insert(0, placed(_ast.Expr(value=nothing), loop))


def _move_condition(loop: Any) -> None:
    """Make `while True: if not condition: break` of it.

    Not for a loop with `else`: a `break` in the `else` would then belong to another loop.
    """
    test = loop.test
    leave = _ast.If(
        test=placed(_ast.UnaryOp(op=_ast.Not(), operand=test), test),
        body=[placed(_ast.Break(), test)],
        orelse=[],
    )
    loop.body.insert(0, placed(leave, test))
    loop.test = placed(_ast.Constant(value=True), test)
