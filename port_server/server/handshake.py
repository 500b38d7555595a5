"""The handshake: the contents of hello, and the check of the options in init.

A function that reads an init raises RefusedError where an option is wrong.
"""

from __future__ import annotations

import os
import sys

from port_server.etf import Atom, codec_name, encode, set_decimals, set_templates
from port_server.protocol import messages
from port_server.protocol.messages import PROTOCOL_VERSION, Init, ProtocolError
from port_server.protocol.requests import FORMS
from port_server.runtime import failure

from .memory import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.framing import Frame, FramingError
    from port_server.settings import Settings

    from .port import Port
    from .status_page import StatusPage

# The settings that `init` may change, with their smallest values.
_LEAST: Final = {
    "max_frame_bytes": 1,
    "max_depth": 1,
    "max_objects": 0,
    "heartbeat_interval_ms": 0,
    "output_window_bytes": 0,
    "delivery_window_bytes": 0,
    "running_after_ms": 0,
    "threads": 0,
    "async_threads": 1,
}
VERSION: Final = "0.1.0"
FEATURES: Final = (
    "eval",
    "call",
    "output",
    "ping",
    "shutdown",
    "cancel_queued",
    "cancel",
    "heartbeat",
    "objects",
    "sessions",
    "logging",
    "async",
    "invoke",
    "send",
    "stream",
)


class RefusedError(Exception):
    """The server cannot begin its service; `description` is the error map for its goodbye."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description["message"])
        self.description = description


def wrong_option(name: str, wanted: str, value: object) -> RefusedError:
    """Make the refusal of an option of the wrong type."""
    return RefusedError(
        failure.describe("protocol", "", f"the option {name} of init is {wanted}, not {value!r}")
    )


def as_init(frame: Frame) -> Init | None:
    """Read the first frame, if it is an init."""
    try:
        message = messages.parse(frame)
    except ProtocolError as error:
        if bytes(frame[:9]).endswith(b"init"):
            raise RefusedError(failure.describe_value_error("protocol", error)) from None
        return None
    return message if type(message) is Init else None


def refusal(error: RefusedError | FramingError) -> dict[str, Any]:
    """Describe why the server cannot begin, for its goodbye."""
    if isinstance(error, RefusedError):
        return error.description
    return failure.describe_value_error("protocol", error)


def _check_version(init: Init) -> None:
    if init.version != PROTOCOL_VERSION:
        raise RefusedError(
            failure.describe(
                "protocol",
                "",
                f"this server speaks version {PROTOCOL_VERSION} of the protocol, not "
                f"{init.version}: let client and server be of the same release",
            )
        )


def settings_of(settings: Settings, init: Init) -> Settings:
    """Give the settings with the changes of `init`, which must be of this version."""
    _check_version(init)
    options = init.options
    changes: dict[str, int | str] = {}
    for name, least in _LEAST.items():
        value = options.get(name)
        if value is not None:
            if type(value) is not int or value < least:
                raise wrong_option(name, f"an integer of at least {least}", value)
            changes[name] = value
    for name, forms in FORMS.items():
        value = options.get(name)
        if value is not None:
            if value not in forms:
                raise wrong_option(name, "one of " + ", ".join(forms), value)
            changes[name] = str(value)
    changes["shared_memory"] = options.get("shared_memory") is True
    binary_as = options.get("binary_as")
    if binary_as is not None:
        if binary_as not in ("str", "bytes"):
            raise wrong_option("binary_as", '"str" or "bytes"', binary_as)
        changes["as_bytes"] = binary_as == "bytes"
    changed = settings.replace(**changes)
    try:
        encode(None, max_depth=changed.max_depth)
    except ValueError as error:  # which says how deep it can go
        raise wrong_option(
            "max_depth", f"one that the codec takes ({error})", changed.max_depth
        ) from None
    return changed


def _option(options: dict[Any, Any], name: str, types: tuple[type, ...], wanted: str) -> Any:
    value = options.get(name)
    if value is not None and not isinstance(value, types):
        raise wrong_option(name, wanted, value)
    return value


def open_page(page: StatusPage, options: dict[Any, Any]) -> None:
    """Map the status page, if the owner has made one."""
    path = _option(options, "status_page", (str, bytes), "a path, a binary")
    if path is not None:
        page.open(path)


def memory_of(options: dict[Any, Any]) -> Memory:
    """Hold the process to its limit, if it has one."""
    most_bytes = _option(options, "memory_limit_bytes", (int,), "an integer")
    memory = Memory()
    if most_bytes is not None:
        try:
            memory.limit(most_bytes)
        except ValueError as error:
            raise wrong_option("memory_limit_bytes", str(error), most_bytes) from None
    return memory


def owner_of(options: dict[Any, Any]) -> tuple[Any, str | bytes]:
    """Give the owner's pid and its token, which mark the handles of this server."""
    return options.get("owner"), _option(options, "token", (str, bytes), "a binary") or ""


def take_templates(options: dict[Any, Any]) -> None:
    """Learn the exact shapes of structs that differ between versions of Elixir."""
    templates = options.get("templates")
    if templates is not None:
        try:
            set_templates(templates)
        except (TypeError, AttributeError) as error:
            raise wrong_option("templates", f"a map of structs ({error})", templates) from None
    decimals = options.get("decimal")
    if decimals is not None:
        try:
            set_decimals(decimals)
        except ValueError:
            raise wrong_option("decimal", '"struct", "string" or "none"', decimals) from None


def wants_logs(options: dict[Any, Any]) -> bool:
    """Tell whether log records are to be sent."""
    return _option(options, "logging", (bool,), "true or false") is not False


def wants_stderr(options: dict[Any, Any]) -> bool:
    """Tell whether the owner reads the file of fd 2, and is to be told when it has grown."""
    return _option(options, "stderr", (bool,), "true or false") is True


def info(port_fd: int, shared: dict[str, Any] | None) -> dict[str, Any]:
    """Give the map of hello for this server, which reads its port on `port_fd`."""
    uname = os.uname()
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "libc": _libc(),
        "machine": uname.machine,
        "os_pid": os.getpid(),
        "port_fd": port_fd,
        "codec": codec_name,
        "server_version": VERSION,
        "features": [Atom(feature) for feature in FEATURES],
        "executable": sys.executable or "",
        # Clients that did not ask for it may not know the word.
        **({"shared_memory": shared} if shared else {}),
    }


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        pass
    try:
        return "musl" if any(name.startswith("ld-musl") for name in os.listdir("/lib")) else ""  # noqa: PTH208
    except OSError:
        return ""


def say_goodbye(port: Port, reason: str | dict[str, Any]) -> None:
    """Write the last frame."""
    goodbye = messages.goodbye(reason)
    if port.silent:  # instead of hello
        port.begin(goodbye, alone=True)
        return
    port.hold([goodbye])
    port.write_all()
