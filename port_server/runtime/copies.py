"""Objects as bytes, on their way to another server: by cloudpickle or, without it, by pickle."""

from __future__ import annotations

import pickle
from typing import Any


def dump(value: Any) -> bytes:
    """Give the bytes of a value.

    Raises:
        TypeError: it cannot be pickled; the message names its type and the reason.
    """
    try:
        import cloudpickle as pickler  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: PLC0415
    except ImportError:
        pickler = pickle
    try:
        return bytes(pickler.dumps(value))
    except Exception as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        advice = "make it anew on the other server"
        if pickler is pickle:
            advice += ", or install cloudpickle, which can pickle more"
        raise TypeError(
            f"an object of the type {kind} cannot be copied, since it cannot be pickled "
            f"({error}): {advice}"
        ) from None


def load(data: bytes) -> Any:
    """Give the value of the bytes of `dump`."""
    return pickle.loads(data)  # noqa: S301  the bytes come from a server of the same application
