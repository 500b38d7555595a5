"""Large requests beside the pipe: in memory that the BEAM and this process share.

It is a memfd, which the BEAM opens through /proc: it has no name, and ends with this process. Its
first page has a token, so that the BEAM knows it, and a generation for each slot. Behind the page
each slot has room for the largest frame; pages that nothing was written to take no memory.

The BEAM counts the generation of a slot, writes a frame there, and names both on the pipe. When
nothing refers to the frame any more, the same generation is written into the first page: so the
slot is free. The layout stands in docs/protocol.md.
"""

from __future__ import annotations

import os

from port_server.protocol.framing import FramingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import Any, Final

    from port_server.protocol.messages import Segment as Place
    from port_server.settings import Settings

try:
    from ._fast import Segment
except ImportError:
    Segment = None  # type: ignore[assignment, misc]

_SLOTS: Final = 64
_PAGE_BYTES: Final = 4096
_TOKEN_BYTES: Final = 16
_GENERATIONS_AT: Final = 64


class SharedMemory:
    """The shared memory of a server, or none where the system or the owner has no use for it.

    Attributes:
        info: what the owner needs to open it, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self.info: dict[str, Any] | None = None
        self._generations = [0] * _SLOTS  # of the frames that have come
        self._mapped: dict[int, mmap] = {}
        if not settings.shared_memory or Segment is None:
            return
        # A page more than the largest frame, because a frame may stand behind the beginning.
        self._stride = (-(-settings.max_frame_bytes // _PAGE_BYTES) + 1) * _PAGE_BYTES
        token = os.urandom(_TOKEN_BYTES)
        try:
            self._fd = os.memfd_create("port_server")
            os.truncate(self._fd, _PAGE_BYTES + _SLOTS * self._stride)
            page = self._map(0, _PAGE_BYTES)
        except (AttributeError, ImportError, OSError):  # no Linux; a limit on the size of files
            return
        page[:_TOKEN_BYTES] = token
        self._done = memoryview(page)[_GENERATIONS_AT : _GENERATIONS_AT + 4 * _SLOTS].cast("I")
        self.info = {"fd": self._fd, "token": token, "stride": self._stride, "slots": _SLOTS}

    def frame(self, place: Place) -> memoryview:
        """Give the frame that stands there.

        Raises:
            FramingError: there is no such slot, or no memory for the frame.
        """
        slot, size, end = place.slot, place.size, place.offset + place.size
        if self.info is None or slot >= _SLOTS or end > self._stride:
            raise FramingError(f"there is no frame of {size} bytes in slot {slot}")
        self._generations[slot] = place.generation
        mapped = self._mapped.get(slot)
        if mapped is None or len(mapped) < end:
            try:
                mapped = self._mapped[slot] = self._map(self._at(slot), end)
            except (OSError, MemoryError) as error:  # a memory limit
                raise FramingError(f"no memory for a frame of {size} bytes: {error}") from None
        memory = memoryview(mapped)[place.offset :]
        return memoryview(Segment(memory, size, self._done, slot, place.generation))

    def give_back(self, slot: int, generation: int) -> None:
        """Free a slot to which no frame was sent, and give its pages back to the system."""
        if self.info is None or slot >= _SLOTS or self._generations[slot] == generation:
            return
        from mmap import MADV_REMOVE  # noqa: PLC0415  not everywhere there

        mapped = self._mapped.pop(slot, None)
        if mapped is not None:
            mapped.madvise(MADV_REMOVE)
        self._generations[slot] = self._done[slot] = generation

    @property
    def status(self) -> dict[str, int]:
        """How much memory it takes, and how many frames are in use."""
        if self.info is None:
            return {}
        try:
            size = os.fstat(self._fd).st_blocks * 512
        except OSError:  # code has closed all files
            size = 0
        used = sum(self._done[slot] != self._generations[slot] for slot in range(_SLOTS))
        return {"shm_bytes": size, "shm_frames": used}

    def _at(self, slot: int) -> int:
        return _PAGE_BYTES + slot * self._stride

    def _map(self, at: int, size: int) -> mmap:
        from mmap import mmap  # noqa: PLC0415  not everywhere there

        return mmap(self._fd, size, offset=at)
