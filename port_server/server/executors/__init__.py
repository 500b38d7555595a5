"""The three places where requests run: the main thread, the event loop, and other threads."""

from __future__ import annotations

from .asyncio import AsyncExecutor
from .main import MainExecutor
from .threads import ThreadExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from port_server.server.core import Core


class Executors:
    """The executors of one server. Each has `cancel` and `go_on` for the requests that it runs."""

    def __init__(self, core: Core) -> None:
        self.loop = AsyncExecutor(core)
        self.main = MainExecutor(core, self.loop)
        self.threads = ThreadExecutor(core, self.loop)
