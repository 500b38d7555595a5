"""Runs `init_code` and `preload`: plain code in the main thread, coroutines on the event loop.

The loop is the one that awaiting requests use later, so tasks that are created here go on, and
what is bound to the loop (queues, connections) serves those requests.
"""

from __future__ import annotations

import sys

from port_server.etf import Atom
from port_server.runtime import failure
from port_server.runtime.snippet import COROUTINE, PLAIN, compile_snippet

from .handshake import RefusedError, wrong_option
from .replies import leave_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from port_server.runtime.snippet import Snippet
    from port_server.settings import Settings

    from .core import Core
    from .executors.asyncio import AsyncExecutor


def run(core: Core, executor: AsyncExecutor, code: Any, option: str) -> None:
    """Run the code of that option; the names that it binds are seen by every request.

    Raises:
        RefusedError: it fails, or is no code.
    """
    try:
        snippet = snippet_of(code, option)
        namespace = core.code.namespaces.fresh(snippet, {})
        value = snippet.run(namespace)
        _refuse_lost_tasks()
        if hasattr(type(value), "__await__"):
            executor.run_init(value)
    except RefusedError:
        raise
    except BaseException as error:
        if core.port.forked:
            leave_child(error)
        raise refused(error, option, core.settings) from None
    core.replies.leave_if_forked()
    core.code.namespaces.adopt(namespace)


def refused(error: BaseException, option: str, settings: Settings) -> RefusedError:
    """Make the refusal for an exception of the code of that option."""
    description = failure.describe_exception(error, settings)
    return RefusedError({**description, "option": Atom(option)})


def snippet_of(code: Any, option: str) -> Snippet:
    """Compile the code of that option, in either of its forms.

    Raises:
        RefusedError: it is no code, or has a top-level yield.
    """
    if type(code) is str:
        snippet = compile_snippet(code, f"<{option}>")
    elif type(code) is tuple and len(code) == 4 and code[0] == "code":
        _tag, text, file, line = code
        snippet = compile_snippet(text, file, line)
    else:
        raise wrong_option(option, "a binary or {code, Source, File, Line}", code)
    if snippet.kind not in {PLAIN, COROUTINE}:
        raise wrong_option(option, "code without a top-level yield", snippet.kind)
    return snippet


def _refuse_lost_tasks() -> None:
    """Raise for tasks on the main thread's own loop, because that loop never runs.

    A loop that has run before is accepted: the same code may run it again. In Python 3.14 the
    thread has no loop unless code has set one.
    """
    asyncio = sys.modules.get("asyncio")
    policy = getattr(getattr(asyncio, "events", None), "_event_loop_policy", None)
    loop = getattr(getattr(policy, "_local", None), "_loop", None)
    if asyncio is None or loop is None or loop.is_running() or loop.is_closed():
        return
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        if not getattr(coroutine, "cr_suspended", True):
            raise RuntimeError(
                f"init_code has created {task!r} on a loop that does not run, so it would never "
                f"begin. Create tasks where a loop runs: in an `async def` function that "
                f"init_code awaits"
            )
