"""Namespaces and contexts: the globals and the context variables of a request. Runs no code.

Every request gets fresh ones: a copy of a small dict, which costs less than building it, and a copy
of a context. Both contain the names and variables that init_code has set. A session keeps its own.
"""

from __future__ import annotations

import builtins
import sys
from _contextvars import copy_context  # contextvars itself is one more file
from sys import getrefcount, is_finalizing

from port_server.etf.errors import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any, Final

    from .snippet import Snippet

# Names kept. Host programs use some hundreds; generated names must not accumulate.
_NAMES_LIMIT: Final = 4096

_Function: Final[Any] = type(show)


class NamespaceError(ValueError):
    """Globals that cannot be names. The message says which and what to do."""


class SessionError(LookupError):
    """A session that does not exist, or that exists already."""


def exact_key(key: object, values: dict[Any, Any]) -> str | None:
    """Give the key of a map from the wire as an exact str, or None if it is no text.

    Exact, because a namespace with keys of a subclass is looked up the slow way. Under
    `binary_as: bytes` binary keys are bytes, and equal to no atom of the same name.

    Raises:
        NamespaceError: `values` holds the name twice, as an atom and as a binary.
    """
    if isinstance(key, str):
        return str(key)
    if type(key) is not bytes:
        return None
    try:
        name = key.decode()
    except UnicodeDecodeError:
        return None
    if name in values:
        raise NamespaceError(f'the keys :{name} and "{name}" are one name in Python; send one')
    return name


# The counts that `references` gives for a namespace, and for a function that only the namespace
# holds. Measured at run time, because the references taken by counting differ between Pythons.
_of_namespace = _of_function = 0


class Closed:
    """The namespace of a session that was closed. It ends when this object is dropped.

    Every function that is defined in a namespace refers to it, so most namespaces would stay, with
    the data frames in them, until the cycle collector runs. A namespace that only such functions
    refer to is emptied.
    """

    __slots__ = ("namespace",)

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace

    def references(self) -> tuple[int, list[int]]:
        """Count the references to the namespace, and to each function in it that refers to it."""
        namespace = self.namespace
        functions = [
            getrefcount(value)
            for value in list(namespace.values())
            if type(value) is _Function and value.__globals__ is namespace
        ]
        return getrefcount(namespace), functions

    def __del__(self, _leaving: Callable[[], bool] = is_finalizing) -> None:
        # While the interpreter shuts down the other globals of this module may be gone, and all
        # namespaces are dropped anyway.
        if _leaving():
            return
        all_references, functions = self.references()
        if all_references == _of_namespace + functions.count(_of_function):
            self.namespace.clear()


def _calibrate() -> tuple[int, int]:
    namespace: dict[str, Any] = {}
    namespace["function"] = _Function(show.__code__, namespace)
    closed = Closed(namespace)
    del namespace
    all_references, (of_function,) = closed.references()
    return all_references - 1, of_function


_of_namespace, _of_function = _calibrate()


class Session:
    """The state of a session.

    Attributes:
        namespace: the globals.
    """

    __slots__ = ("_context", "_entered", "namespace")

    def __init__(self, namespace: dict[str, Any], context: Context) -> None:
        self._context = context
        # The contexts of the requests that run, each made from within the one before it.
        self._entered: list[Context] = []
        self.namespace = namespace

    def enter(self, request: Any) -> Context:
        """Give the context of a request: a copy of the one that the session has.

        A context can be entered once. So a request that is made from within another one of the
        session gets a copy: it sees the variables of that request, and its changes are its own.
        """
        entered = self._entered
        context = request.context = (entered[-1] if entered else self._context).copy()
        entered.append(context)
        request.session = self
        return context

    def leave(self, request: Any) -> None:
        """Note the end of a request; the session keeps the variables that it has set."""
        context, request.session = request.context, None
        if self._entered[-1] is context:
            self._entered.pop()
        else:  # by identity: contexts are equal if they hold the same values
            self._entered = [entered for entered in self._entered if entered is not context]
        if not self._entered:
            self._context = context


class Namespaces:
    """Makes namespaces and contexts, and keeps those of sessions by name.

    Attributes:
        base: the initial names of each namespace, without its `__loader__`.
        find: gives the session of that name, or None.
        names: keys of globals that were checked, and their names.
        new_context: gives the context of a request without a session.
    """

    __slots__ = ("_sessions", "base", "find", "names", "new_context")

    def __init__(self) -> None:
        # As in a script: `if __name__ == "__main__"` holds, and classes print without a module.
        self.base: dict[str, Any] = {
            "__name__": "__main__",
            "__builtins__": builtins,
            "__doc__": None,
            "__package__": None,
            "__spec__": None,
            "__loader__": None,
        }
        self.names: dict[str, str] = {}
        self.new_context: Callable[[], Context] = copy_context().copy
        self._sessions: dict[bytes, Session] = {}
        self.find = self._sessions.get

    def fresh(self, snippet: Snippet, values: dict[Any, Any]) -> dict[str, Any]:
        """Give a new namespace for `snippet` that holds `values`.

        Raises:
            NamespaceError: a key of `values` is no identifier.
        """
        namespace = self.base.copy()
        namespace["__loader__"] = snippet.source
        if values:
            names = self.names
            for key, value in values.items():
                namespace[names.get(key) or self._name(key, values)] = value
        return namespace

    # --- sessions -------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def open(self, session: bytes) -> None:
        """Begin a session with the names that init_code has defined.

        Raises:
            SessionError: the name is taken.
        """
        if session in self._sessions:
            raise SessionError(f"there is a session {_shown(session)} already; close it first")
        self._sessions[session] = Session(self.base.copy(), self.new_context())

    def close(self, session: bytes) -> Closed | None:
        """End a session; give its namespace, for the caller to drop where user code may run.

        A request of it that is running goes on with the namespace that it has.
        """
        closed = self._sessions.pop(session, None)
        return None if closed is None else Closed(closed.namespace)

    def session(self, name: bytes) -> Session:
        """Give the session of that name.

        Raises:
            SessionError: it is not open.
        """
        session = self._sessions.get(name)
        if session is None:
            raise SessionError(
                f"the session {_shown(name)} is not open: it was closed, or the process that "
                f"opened it has ended"
            )
        return session

    def of_session(
        self, session: bytes, snippet: Snippet, values: dict[Any, Any]
    ) -> dict[str, Any]:
        """Give the namespace of `session`, for `snippet`, with `values` put into it.

        Raises:
            SessionError: it is not open.
            NamespaceError: a key of `values` is no identifier; nothing is put into it then.
        """
        namespace = self.session(session).namespace
        if values:
            names = self.names
            namespace.update(
                {names.get(key) or self._name(key, values): values[key] for key in values}
            )
        # Lines of older snippets are looked up by file name; see `sources`.
        namespace["__loader__"] = snippet.source
        return namespace

    # --- init_code ------------------------------------------------------------------------------

    def adopt(self, namespace: dict[str, Any]) -> None:
        """Let later requests begin with the state that init_code left.

        That is the names in `namespace`, and the context variables that are set now.
        """
        own = ("__builtins__", "__name__", "__loader__", "__annotations__")
        self.base.update({name: value for name, value in namespace.items() if name not in own})
        context = copy_context()
        self.new_context = context.copy
        if any(variable.name == "decimal_context" for variable in context):
            # The variable holds an object that code changes in place: `getcontext().prec = 5`.
            decimal = sys.modules["decimal"]

            def new_context() -> Context:
                copy = context.copy()
                copy.run(lambda: decimal.setcontext(decimal.getcontext().copy()))
                return copy

            self.new_context = new_context

    def _name(self, key: object, values: dict[Any, Any]) -> str:
        name = exact_key(key, values)
        if name is not None and not name.isascii():
            # Python normalises identifiers to this form, so code looks the name up in it.
            from unicodedata import normalize  # noqa: PLC0415  next to never needed

            plain = normalize("NFKC", name)
            if plain != name:
                for other_key in values:
                    other = None if other_key is key else exact_key(other_key, values)
                    if other is not None and normalize("NFKC", other) == plain:
                        raise NamespaceError(
                            f'the keys "{name}" and "{other}" are one name in Python; send one'
                        )
            name = plain
        if name is None or not name.isidentifier() or _is_keyword(name):
            raise NamespaceError(
                f"{show(key)} cannot be the name of a global: keys are atoms or strings that are "
                f'Python identifiers, like :rows or "rows". Put the map itself into one global'
            )
        # Another spelling is checked each time: its normal form may be a second key.
        if key == name and len(self.names) < _NAMES_LIMIT:
            self.names[name] = name
        return name


def _shown(session: bytes) -> str:
    try:
        return show(session.decode())  # as the client writes it
    except UnicodeDecodeError:
        return show(session)


def _is_keyword(name: str) -> bool:
    from keyword import iskeyword  # noqa: PLC0415  not on the start path

    return iskeyword(name)
