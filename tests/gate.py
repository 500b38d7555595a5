"""What code of a test waits for, so that it is under way for exactly as long as the test wants."""


class Gate:
    """A file that is not there yet; the code ends with whatever a test adds to it."""

    def __init__(self, path):
        self._path = path
        until = f"while not os.path.exists({str(path)!r}):"
        self.asleep = f"import os, time\n{until} time.sleep(0.002)\n"
        self.busy = f"import os\n{until} pass\n"
        self.awaiting = f"import asyncio, os\n{until} await asyncio.sleep(0.002)\n"

    def open(self):
        """Let the code go on."""
        self._path.touch()
