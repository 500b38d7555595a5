"""Runs `init_code`: plain code in the main thread, what it awaits on the loop of the async lane.

The loop is the one that awaiting requests use later, so tasks that are created here go on, and
what is bound to the loop (queues, connections) serves those requests.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock

from port_server.runtime import failure
from port_server.runtime.snippet import COROUTINE, PLAIN, compile_snippet

from .greeting import RefusedError, wrong_option
from .replies import leave_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from port_server.runtime.snippet import Snippet
    from port_server.settings import Settings

    from .async_lane import AsyncLane
    from .evaluate import Evaluator
    from .stdio import Stdio


def run(
    code: Any, evaluator: Evaluator, async_lane: AsyncLane, stdio: Stdio, settings: Settings
) -> None:
    """Run it; the names that it binds are seen by every request.

    Raises:
        RefusedError: it fails, or is no code.
    """
    try:
        snippet = _snippet(code)
        namespace = evaluator.namespaces.fresh(snippet, {})
        value = snippet.run(namespace)
        _refuse_lost_tasks()
        if hasattr(type(value), "__await__"):
            _await(value, async_lane)
    except RefusedError:
        raise
    except BaseException as error:
        if stdio.forked:
            leave_child(error)
        raise RefusedError(failure.describe_exception(error, settings)) from None
    if stdio.forked:
        leave_child(None)
    evaluator.namespaces.adopt(namespace)


def _snippet(code: Any) -> Snippet:
    """Compile it, in either of its forms."""
    if type(code) is str:
        snippet = compile_snippet(code, "<init_code>")
    elif type(code) is tuple and len(code) == 4 and code[0] == "code":
        _tag, text, file, line = code
        snippet = compile_snippet(text, file, line)
    else:
        raise wrong_option("init_code", "a binary or {code, Source, File, Line}", code)
    if snippet.kind not in {PLAIN, COROUTINE}:
        raise wrong_option("init_code", "code without a top-level yield", snippet.kind)
    return snippet


def _await(value: Any, async_lane: AsyncLane) -> None:
    """Wait until the loop has awaited `value`; raise what that raises."""
    async_lane.prepare()
    outcome: list[BaseException] = []
    over = allocate_lock()
    over.acquire()

    async def drive() -> None:
        try:
            await value
        except BaseException as error:
            outcome.append(error)
        finally:
            async_lane.init_task = None
            over.release()

    def start() -> None:
        async_lane.init_task = async_lane.loop.create_task(drive())

    async_lane.loop.call_soon_threadsafe(start)
    over.acquire()
    if outcome:
        raise outcome[0]


def _refuse_lost_tasks() -> None:
    """Raise for tasks on the main thread's own loop which nothing runs.

    A loop that was run before is left alone: who ran it may run it again. Python 3.14 has no loop
    there unless code has set one.
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
