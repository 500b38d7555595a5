"""A server that has to outlive what is done to it, and the look around afterwards."""

import pathlib
import time

import pytest
from port_client import Client


def counts(client):
    """Give what must not grow: fds, threads, children, objects, sessions."""
    process = pathlib.Path(f"/proc/{client.process.pid}")
    status = client.status()
    return {
        "fds": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "children": (process / f"task/{client.process.pid}/children").read_text().split(),
        "objects": status["objects"],
        "sessions": status["sessions"],
        "queue": status["queue"],
    }


@pytest.fixture
def survivor():
    """A server that answers after the test as before it, keeps nothing, and ends in peace."""
    with Client() as client:
        client.eval("1 / 0")  # what the first failure imports
        before = counts(client)
        yield client
        assert client.value("6 * 7") == 42
        end = time.monotonic() + 5
        while (now := counts(client)) != before:
            assert time.monotonic() < end, f"left: {now}, before: {before}"
            time.sleep(0.01)
        client.end()
        assert client.process.returncode == 0
