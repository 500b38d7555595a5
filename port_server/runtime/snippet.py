"""Source -> code object, cached: the last expression's value, `return`, `yield`, `await`.

Compiles and caches; other modules make namespaces and run the code. Plain code is run as a module,
so that everything works that works in a file. Only code with a top-level `return`, `yield` or
`await` needs a function around it; its names are declared global there, so that they are bound in
the namespace as well.

A line that is an expression is compiled without a tree: this takes half the time, and saves the
3 ms of importing `_ast` and `rewrite` on the start path.
"""

from __future__ import annotations

from _functools import partial  # type: ignore[import-not-found]  # functools costs 2 ms
from binascii import crc32

from .sources import Source, source_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any, Final, TypeAlias

    from .rewrite import Scope

    # The cache key of a request's code: the source, or (atom `code`, source, file, line).
    Key: TypeAlias = "str | tuple[str, str, str, int]"

PLAIN: Final = "plain"  # a value at once; `return` included
COROUTINE: Final = "coroutine"
GENERATOR: Final = "generator"
ASYNC_GENERATOR: Final = "async generator"

# compile()'s flag for "give the tree, not the code".
ONLY_AST: Final = 0x400
# All the flags of __future__ imports, from code.h: they must reach the last expression as well.
_FUTURE_FLAGS: Final = 0x1FE0000

# The text of calls of rewrite.LOOP_FUNCTIONS.
_LOOP_CALLS: Final = ("gather(", "create_task(", "ensure_future(", "shield(")

_Function: Final[Any] = type(lambda: None)  # types.FunctionType, without its module


class Snippet:
    """Code that can be run in any namespace.

    Attributes:
        parts: the code of its statements, that of its last expression (None where there are none),
            and its source, for C; None for code that is more than these.
        kind: PLAIN, COROUTINE, GENERATOR or ASYNC_GENERATOR: the result of `run`.
        source: the file it belongs to, for tracebacks; `__loader__` of its namespaces.
        line: its first line in that file.
        names: the names that its top level binds; see the property.
        text: its source.
        run: takes a namespace and gives the value or, unless it is plain, the coroutine or
            generator that gives it.
        special_line: the line of the `yield` or `await` that makes it other than plain, else 0.
    """

    __slots__ = (
        "_names",
        "kind",
        "line",
        "parts",
        "run",
        "source",
        "special_line",
        "text",
    )

    def __init__(
        self,
        source: Source,
        line: int,
        text: str,
        *,
        kind: str = PLAIN,
        body: CodeType | None = None,
        tail: CodeType | None = None,
        function: CodeType | None = None,
        special_line: int = 0,
    ) -> None:
        self.source = source
        self.line = line
        self.text = text
        self.kind = kind
        self.special_line = special_line
        self._names: frozenset[str] | None = None
        self.parts = None if function is not None else (body, tail, source)
        # No bound method of this object: a cycle would keep a snippet that leaves the cache.
        self.run: Callable[[dict[str, Any]], Any] = partial(self.run_parts, body, tail, function)
        if tail is not None and body is None:
            self.run = partial(eval, tail)  # an expression alone: no Python frame in between

    @property
    def names(self) -> frozenset[str]:
        """The names that its top level binds, without those of `import *` and exec().

        Computed at the first use, because it is seldom needed. Names like `__this__` are Python's.
        """
        if self._names is None:
            from . import rewrite  # noqa: PLC0415  see above

            tree: Any = compile(self.text, self.source.file, "exec", ONLY_AST, dont_inherit=True)
            names = rewrite.Scope(tree.body).names
            self._names = frozenset(
                name for name in names if not (name.startswith("__") and name.endswith("__"))
            )
        return self._names

    @staticmethod
    def run_parts(
        body: CodeType | None,
        tail: CodeType | None,
        function: CodeType | None,
        namespace: dict[str, Any],
    ) -> Any:
        """Run the statements, then the last expression; or the function."""
        if body is not None:
            exec(body, namespace)  # noqa: S102  it is what this is for
        if tail is not None:
            return eval(tail, namespace)  # noqa: S307
        if function is not None:
            return _Function(function, namespace)()
        return None


class Snippets:
    """The cache of compiled snippets. Bounded: the oldest goes first.

    Attributes:
        entries: the cache itself, whose `get` is here as well.
        parts: the parts of those snippets that C can run, by their source.
    """

    __slots__ = ("_limit", "entries", "get", "parts")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.entries: dict[Key, Snippet] = {}
        self.get = self.entries.get
        self.parts: dict[str, tuple[CodeType | None, CodeType | None, Source]] = {}

    def compile(self, key: Key, text: str, file: str | None = None, line: int = 1) -> Snippet:
        """Compile `text`, which begins at `line` of `file`, and keep it as `key`.

        Raises:
            SyntaxError: and what else compile() raises.
        """
        snippet = compile_snippet(text, file, line)
        entries = self.entries
        # Oldest first, not least recently used: a hit must cost only one dict lookup.
        while len(entries) >= self._limit:
            oldest = next(iter(entries))
            old = entries.pop(oldest)
            self.parts.pop(oldest, None)  # type: ignore[arg-type]
            old.source.remove(old.line, old.text)
        entries[key] = snippet
        if type(key) is str and snippet.kind is PLAIN and snippet.parts is not None:
            self.parts[key] = snippet.parts
        return snippet


def compile_snippet(text: str, file: str | None = None, line: int = 1) -> Snippet:
    """Compile `text`, which begins at `line` of `file`.

    Without a file it is named by a checksum of its text, so that the source lines in a traceback
    are never those of another snippet, and the same code has the same name in every report.

    Raises:
        SyntaxError: and what else compile() raises.
    """
    if file is None:
        file = f"<eval {crc32(text.encode('utf-8', 'surrogatepass')):08x}>"
    # Blank lines before it: every position, those of syntax errors included, is then right.
    padded = "\n" * (line - 1) + text
    source = source_of(file)
    in_loop = any(call in text for call in _LOOP_CALLS)
    try:
        expression = None if in_loop else _compile_expression(text, padded, file)
        if expression is not None:
            source.add(line, text)
            return Snippet(source, line, text, tail=expression)
        from . import rewrite  # noqa: PLC0415  see above

        tree: Any = compile(padded, file, "exec", ONLY_AST, dont_inherit=True)
        if "while" in text and ("try" in text or "with" in text):
            rewrite.let_loops_be_interrupted(tree)
        snippet = None
        in_loop = in_loop and rewrite.await_last_call(tree)
        if in_loop or any(word in text for word in ("return", "yield", "await", "async")):
            scope = rewrite.Scope(tree.body)
            if scope.returns or scope.yields or scope.awaits:
                snippet = _compile_function(tree, source, line, text, scope)
        if snippet is None:
            snippet = _compile_module(tree, source, line, text)
    except SyntaxError as error:
        # Found while a tree was compiled, which has no source to quote from.
        if error.text is None and error.lineno:
            lines = padded.split("\n")
            if error.lineno <= len(lines):
                error.text = lines[error.lineno - 1]
        raise
    source.add(line, text)
    return snippet


def _compile_expression(text: str, padded: str, file: str) -> CodeType | None:
    """Compile a line that is an expression; None for other code."""
    # Such text is seldom an expression, and Python would warn twice of a backslash. It still warns
    # twice of a number that runs into a word (`x = 1if y else 2`).
    if "\n" in text or "\\" in text:
        return None
    try:
        code: CodeType = compile(padded, file, "eval", dont_inherit=True)
    except SyntaxError:  # a real one is raised again later
        return None
    return code


def _compile_module(tree: Any, source: Source, line: int, text: str) -> Snippet:
    import _ast  # noqa: PLC0415  see above

    file = source.file
    body = tree.body
    if not body or not isinstance(body[-1], _ast.Expr):
        return Snippet(source, line, text, body=_compile(tree, file) if body else None)
    last = body.pop()
    code = None
    flags = 0
    if body:
        code = _compile(tree, file)
        flags = code.co_flags & _FUTURE_FLAGS
    expression = _ast.Expression(body=last.value)
    tail = compile(expression, file, "eval", flags, dont_inherit=True)
    return Snippet(source, line, text, body=code, tail=tail)


def _compile_function(tree: Any, source: Source, line: int, text: str, scope: Scope) -> Snippet:
    from . import rewrite  # noqa: PLC0415  see above

    file = source.file
    special = scope.returns or scope.yields or scope.awaits
    if scope.star_import is not None:
        word = "return" if scope.returns else "yield" if scope.yields else "await"
        at = scope.star_import
        raise SyntaxError(
            f"`import *` cannot be used together with `{word}` at the top level (line "
            f"{special.lineno}): such code runs as a function, where Python does not allow it. "
            f"Name what is imported, or leave the `{word}` away",
            (file, at.lineno, at.col_offset + 1, None, at.end_lineno, at.end_col_offset + 1),
        )
    if scope.yields:
        kind = ASYNC_GENERATOR if scope.awaits else GENERATOR
        special = scope.yields
    elif scope.awaits:
        kind = COROUTINE
        special = scope.awaits
    else:
        kind = PLAIN
    module = _compile(
        rewrite.as_function(
            tree.body,
            scope.names,
            is_async=scope.awaits is not None,
            # An async generator cannot return a value; Python itself refuses its `return`s.
            value=kind != ASYNC_GENERATOR,
        ),
        file,
    )
    function = next(item for item in module.co_consts if type(item) is type(module))
    return Snippet(
        source,
        line,
        text,
        kind=kind,
        function=function,
        special_line=0 if kind == PLAIN else special.lineno,
    )


def _compile(tree: Any, file: str) -> CodeType:
    code: CodeType = compile(tree, file, "exec", dont_inherit=True)
    return code
