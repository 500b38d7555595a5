"""The transcript in docs/protocol.md is what the real server says."""

from pathlib import Path

import pytest

from port_server.etf import codec_name, decode, encode

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def transcript():
    """Steps of the conversation: (direction, bytes); no bytes where machines differ."""
    block = DOCUMENT.read_text().split("```transcript\n")[1].split("```")[0]
    steps = []
    for line in block.splitlines():
        mark, text = line[:1], line[2:]
        if mark in {">", "<"}:
            steps.append((mark, bytes.fromhex(text)))
        elif mark == "~":
            steps.append((mark, b""))
        elif mark == " " and steps[-1][0] != "~":
            steps[-1] = (steps[-1][0], steps[-1][1] + bytes.fromhex(text))
    return steps


@pytest.fixture(scope="module")
def steps():
    return transcript()


def test_the_server_says_what_is_written(start, steps):
    """Every frame that is sent gets the frames that follow it, and no others."""
    server = start(init=None)
    for mark, data in steps:
        if mark == ">":
            server.send_raw(data)
        elif mark == "~":
            assert server.receive()[0] == "hello"
        else:
            assert server.receive() == decode(data[4:], binary_as="bytes")
    assert server.rest() == []
    assert server.wait() == 0


@pytest.mark.skipif(
    codec_name != "native", reason="what is written is what the native codec writes"
)
def test_the_bytes_are_those_that_are_written(steps):
    """The frames of the server, decoded and written again, are the same bytes."""
    for mark, data in steps:
        if mark == "<":
            assert encode(decode(data[4:], binary_as="bytes")) == data[4:]


def test_every_message_that_is_served_is_in_the_transcript(steps):
    """What is specified is shown."""
    tags = {decode(data[4:], binary_as="bytes")[0] for mark, data in steps if mark != "~"}
    assert {"init", "eval", "call", "shutdown", "ok", "error", "output", "goodbye"} <= tags


def test_a_hello_by_the_specification(server):
    """Every key that the table has, and no other."""
    table = DOCUMENT.read_text().split("#### `{hello, Version, Info}`")[1].split("####")[0]
    keys = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert set(server.hello[2]) == keys
