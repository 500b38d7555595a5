"""The transcript in docs/protocol.md is what the real server says."""

import re
from pathlib import Path

import pytest

from port_server.etf import codec_name, decode, encode

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def transcripts():
    """Give the steps of each conversation: (direction, bytes); what is random by its tag alone."""
    conversations = []
    for block in DOCUMENT.read_text().split("```transcript\n")[1:]:
        steps = []
        for line in block.split("```")[0].splitlines():
            mark, text = line[:1], line[2:]
            if mark in {">", "<"}:
                steps.append((mark, bytes.fromhex(text)))
            elif mark == "~":
                steps.append((mark, text.strip("{").split(",")[0].encode()))
            elif mark == " " and steps[-1][0] != "~":
                steps[-1] = (steps[-1][0], steps[-1][1] + bytes.fromhex(text))
        conversations.append(steps)
    return conversations


STEPS = [step for steps in transcripts() for step in steps]


@pytest.mark.parametrize(
    "steps", transcripts(), ids=["plain", "owned", "beats", "long", "children"]
)
def test_the_server_says_what_is_written(start, steps):
    """Every frame that is sent gets the frames that follow it, and no others."""
    server = start(init=None)

    def receive(*, beat):
        # Beats come by the clock, between whatever else is said.
        while (message := server.receive())[0] == "heartbeat" and not beat:
            pass
        return message

    for mark, data in steps:
        if mark == ">":
            server.send_raw(data)
        elif mark == "~":
            assert receive(beat=data == b"heartbeat")[0] == data.decode()
        else:
            wanted = decode(data[4:], binary_as="bytes")
            message = receive(beat=False)
            # What is printed may leave in pieces, where the machine is slow.
            while message[0] == wanted[0] == "output" and len(message[3]) < len(wanted[3]):
                more = receive(beat=False)
                assert more[:3] == message[:3]
                message = (*message[:3], message[3] + more[3])
            assert message == wanted
    server.end_input()
    assert [message for message in server.rest() if message[0] != "heartbeat"] == []
    assert server.wait() == 0


@pytest.mark.skipif(
    codec_name != "native", reason="what is written is what the native codec writes"
)
def test_the_bytes_are_those_that_are_written():
    """The frames of the server, decoded and written again, are the same bytes."""
    for mark, data in STEPS:
        if mark == "<":
            assert encode(decode(data[4:], binary_as="bytes")) == data[4:]


def test_every_message_that_is_specified_is_in_the_transcript():
    """Each heading is shown, and nothing is shown that has none."""
    shown = {
        data.decode() if mark == "~" else str(decode(data[4:], binary_as="bytes")[0])
        for mark, data in STEPS
    }
    specified = set(re.findall(r"^#### `\{(\w+)", DOCUMENT.read_text(), re.MULTILINE))
    # `dance` is shown as a message that there is not.
    assert shown - {"dance"} == specified


def test_a_hello_by_the_specification(server):
    """Every key that the table has, and no other."""
    table = DOCUMENT.read_text().split("#### `{hello, Version, Info}`")[1].split("####")[0]
    keys = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert set(server.hello[2]) == keys
    row = next(line for line in table.splitlines() if line.startswith("| `features`"))
    assert {str(name) for name in server.hello[2]["features"]} == set(row.split("`")[3::2])
