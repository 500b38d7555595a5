"""The limits of a server: a name with its unit, a default, and the reason for it.

The owner sends changes in `init`; no files or environment variables are read. Limits without a use
case for a change (the length of a repr in a handle, the number of kept targets) are constants
beside the code that uses them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Self


class Settings:
    """The limits of one server. Frozen; `replace` makes a changed copy.

    Written by hand: importing dataclasses would double the server's start-up time.
    """

    __slots__ = (
        "arrays",
        "as_bytes",
        "async_threads",
        "cancel_resend_ms",
        "code_cache_entries",
        "delivery_window_bytes",
        "exit_grace_ms",
        "hangup_grace_ms",
        "heartbeat_interval_ms",
        "held_frames",
        "kept_buffer_bytes",
        "max_depth",
        "max_error_frames",
        "max_error_text_chars",
        "max_frame_bytes",
        "max_nested_calls",
        "max_objects",
        "max_queue_bytes",
        "output_batch_bytes",
        "output_delay_ms",
        "output_window_bytes",
        "pipe_bytes",
        "progress_interval_ms",
        "read_bytes",
        "running_after_ms",
        "shared_memory",
        "tables",
        "threads",
    )

    arrays: str
    """The form in which the arrays of a value are sent where the request does not say it: "object",
    "tensor" or "nx"."""

    tables: str
    """The same for tables: "object", "arrow" or "explorer"."""
    as_bytes: bool
    """Whether the binaries of a request that does not say so itself are bytes, not str."""

    max_frame_bytes: int
    """Longest frame read or written. A header above it ends the connection: a stray print looks
    like a length of 1.7 GB, which must not be allocated. 1 GiB is far above any sensible request
    and below the 2 GiB that a BEAM reads at once."""

    max_depth: int
    """Deepest nesting of a value, both ways; the default of the codec. Python code that walks
    values recursively meets its own limit at 1,000."""

    read_bytes: int
    """Most bytes of one read while the length of the input is unknown. Above 64 KiB every os.read
    costs a fresh mmap (16 us)."""

    pipe_bytes: int
    """Capacity asked for on both pipes: worth 1.2 to 1.7 times the speed on large values. 1 MiB is
    what Linux grants without privileges."""

    kept_buffer_bytes: int
    """Largest buffer for incoming frames that is kept for the next one: page faults, not copies,
    are what large frames cost. Kept pages count as resident, so there is a limit."""

    held_frames: int
    """Most frames that wait to be written together. Linux takes 1,024 buffers in one writev; a
    quarter of that is as fast."""

    output_batch_bytes: int
    """Printed text is sent when this much waits: 1,000 small prints become a few frames."""

    output_delay_ms: int
    """Text printed this long after what is pending goes out together with it at once, so that a
    progress bar moves."""

    output_window_bytes: int
    """How much of a request's output may be unacknowledged; code that prints more waits until the
    owner has passed some on. 0 is no limit, and the default, because only an owner that sets a
    limit is known to acknowledge."""

    delivery_window_bytes: int
    """How much of log records and messages to processes may be unacknowledged; code that logs or
    sends more waits until the owner has passed some on. 0 is no limit, and the default, as for
    `output_window_bytes`."""

    cancel_resend_ms: int
    """Time between two tries to stop a request that was cancelled. Code may catch the exception,
    and an exception in a `__del__` is lost. Long enough for a short `finally`, short enough for
    several tries within any grace."""

    code_cache_entries: int
    """Code objects kept. A host program has some hundreds of snippets; code built from data would
    grow without end."""

    max_objects: int
    """Objects that the other side may hold handles of. Far more than a program holds on purpose: a
    loop that forgets to release gets an error before the memory is full."""

    max_error_frames: int
    """Frames listed in one error. RecursionError has a thousand, all alike."""

    max_error_text_chars: int
    """Longest message and traceback in an error, in characters: an exception may carry a whole
    document as its text, and errors end up in logs."""

    exit_grace_ms: int
    """How long user threads and children may take to end when the server leaves, also after the
    port has hung up; then it leaves without them. The owner of the port has a grace of its own, a
    second by default."""

    hangup_grace_ms: int
    """How long the server may take to begin to leave by itself once the other side of the port has
    hung up; then it is killed with its process group. Short, because no caller waits for it any
    more."""

    heartbeat_interval_ms: int
    """Time between two heartbeats; 0 for none. A second is short enough for a person who waits,
    and the heartbeat is the only reason for an idle server to wake up."""

    progress_interval_ms: int
    """Least time between two reports of the progress of one request, in milliseconds; the last one,
    where all is done, is always sent."""

    running_after_ms: int
    """How long a request has run when its owner is told that it runs, 0 for never. An owner that is
    told watches the caller, and cancels at once when that dies. Long enough that no short request
    pays for it. 0 is the default, because only an owner that asks is known to understand it."""

    max_nested_calls: int
    """Calls into the BEAM that may wait in the main thread at once, each on top of another: Python
    calls Elixir, which calls Python, and so on. Each takes about ten frames of the 1,000 that
    Python allows."""

    threads: int
    """Requests that run at once, each in a thread of its own. 0, the default, runs them one after
    another in the main thread: there a signal can stop any code, and libraries that are not
    thread-safe work."""

    async_threads: int
    """Threads in which `asyncio.to_thread` and `run_in_executor` run functions. They wait for I/O
    mostly, so more than the `cores + 4` that asyncio has."""

    max_queue_bytes: int
    """Requests read ahead while user code runs, in bytes of their frames; with more the port is
    left alone until some are done, and the pipe holds the client back. Reading ahead is what lets
    a cancel be seen, so this is far above what a client has open on purpose."""

    shared_memory: bool
    """Whether large requests may come through shared memory. False is the default, because only an
    owner that asks is known to write there."""

    def __init__(
        self,
        *,
        max_frame_bytes: int = 1 << 30,
        max_depth: int = 512,
        read_bytes: int = 1 << 16,
        pipe_bytes: int = 1 << 20,
        kept_buffer_bytes: int = 1 << 27,
        held_frames: int = 256,
        output_batch_bytes: int = 8192,
        output_delay_ms: int = 20,
        output_window_bytes: int = 0,
        cancel_resend_ms: int = 50,
        code_cache_entries: int = 1024,
        delivery_window_bytes: int = 0,
        max_objects: int = 100_000,
        max_error_frames: int = 100,
        max_error_text_chars: int = 65_536,
        exit_grace_ms: int = 500,
        hangup_grace_ms: int = 200,
        heartbeat_interval_ms: int = 1000,
        progress_interval_ms: int = 50,
        running_after_ms: int = 0,
        threads: int = 0,
        async_threads: int = 32,
        max_nested_calls: int = 64,
        max_queue_bytes: int = 1 << 28,
        arrays: str = "object",
        tables: str = "object",
        as_bytes: bool = False,
        shared_memory: bool = False,
    ) -> None:
        values = locals()
        for name in Settings.__slots__:
            object.__setattr__(self, name, values[name])

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings are frozen; use replace({name}=...)")

    def replace(self, **changes: int | str) -> Self:
        """Give a copy with `changes`; an unknown name is a TypeError."""
        return type(self)(**{name: getattr(self, name) for name in Settings.__slots__} | changes)
