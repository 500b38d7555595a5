"""Messages read from frames and written to them; wrong shapes, each with its own clear sentence."""

import pytest

from port_server.etf import Atom, decode, encode
from port_server.protocol import messages
from port_server.protocol.messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    Cancel,
    Init,
    Ping,
    ProtocolError,
    Request,
    Shutdown,
    id_term_of,
)

A = Atom
ID = id_term_of(b"7")


def test_the_fixed_prefixes_are_what_a_client_writes():
    """Thirteen bytes tell an eval or a call, whatever the id and the body are."""
    for name in (b"", b"x", b"x" * 255):
        frame = encode((A("eval"), name, {}, b"1", {}))
        assert frame.startswith(EVAL_PREFIX)
        assert frame[13] == len(name)
        assert encode((A("call"), name, {}, b"m:f", [], {})).startswith(CALL_PREFIX)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ((A("cancel"), b"7"), Cancel(ID)),
        ((A("ping"), b"7"), Ping(ID)),
        ((A("ping"), b""), Ping(id_term_of(b""))),
        ((A("shutdown"), 500), Shutdown(500)),
        ((A("init"), 1, {A("max_depth"): 9}), Init(1, {"max_depth": 9})),
    ],
)
def test_control_messages_are_read(term, message):
    """Each comes out as the message that it is."""
    assert messages.parse(encode(term)) == message


@pytest.mark.parametrize("tag", [b"d\0\x04", b"s\x04", b"v\0\x04", b"w\x04"])
@pytest.mark.parametrize("tuple_header", [b"h\x05", b"i\0\0\0\x05"])
def test_every_legal_spelling_of_a_request_is_understood(tag, tuple_header):
    """An older OTP writes atoms with other tags; a request is a request in each of them."""
    body = b"t\0\0\0\0m\0\0\0\x011t\0\0\0\0"
    frame = b"\x83" + tuple_header + tag + b"eval" + ID + body
    message = messages.parse(frame)
    assert message == Request("eval", ID, len(frame) - len(body))


def test_a_frame_in_a_memoryview_is_read_like_bytes():
    """Large frames are not copied for the sake of their envelope."""
    frame = memoryview(bytearray(encode((A("eval"), b"7", {}, b"1", {}))))
    assert messages.parse(frame).id_term == ID


BAD = {
    "nothing": (b"", "0 bytes", None),
    "text": (b"hello", "first byte is 104, not 131", None),
    "compressed": (b"\x83P\0\0\0\x01x", "compressed", None),
    "no tuple": (encode([1]), "not a tuple", None),
    "empty tuple": (encode(()), "not a tuple", None),
    "no atom": (encode((b"eval", b"7")), "starts with an atom", None),
    "unknown, no id": (encode((A("dance"),)), "dance is not known", None),
    "unknown, id": (encode((A("dance"), b"7", 1)), "dance is not known", ID),
    "unknown, strange id": (encode((A("dance"), 7)), "dance is not known", None),
    "credit is no number": (encode((A("credit"), b"7", b"1")), "credit is a count of items", ID),
    "ack is no number": (encode((A("ack"), b"7", b"1")), "ack takes a count of bytes", ID),
    "bytes behind an ack": (encode((A("ack"), b"7", 1)) + b"x", "behind the ack", ID),
    "id of a call is no binary": (encode((A("answer"), 7, 1)), "id of a call is a binary", None),
    "wrong arity": (encode((A("eval"), b"7", {})), "tuple of 5 elements, this one has 3", ID),
    "call as eval": (encode((A("call"), b"7", {}, b"1", {})), "tuple of 6", ID),
    "id is an atom": (encode((A("ping"), A("x"))), "id of ping is a binary", None),
    "id too long": (encode((A("ping"), b"x" * 256)), "at most 255 bytes", None),
    "id cut off": (encode((A("ping"), b"abc"))[:-1], "id of ping cannot be read", None),
    "trailing bytes": (encode((A("ping"), b"7")) + b"x", "1 bytes stand behind the ping", ID),
    "grace is no number": (encode((A("shutdown"), A("now"))), "milliseconds", None),
    "init options": (encode((A("init"), 1, [])), "an integer and a map", None),
    "cut in the tuple": (b"\x83h", "2 bytes", None),
    "cut in the atom": (b"\x83h\x02w\x04pi", "no message", None),
}


@pytest.mark.parametrize(("frame", "reason", "id_term"), BAD.values(), ids=BAD)
def test_a_wrong_shape_says_what_is_wrong(frame, reason, id_term):
    """Each has a sentence of its own, and the id where one is readable."""
    with pytest.raises(ProtocolError, match=reason) as caught:
        messages.parse(frame)
    assert caught.value.id_term == id_term


def test_every_prefix_of_a_valid_frame_is_refused_and_nothing_else_happens():
    """A frame that ends early raises ProtocolError, never anything else."""
    for term in ((A("ping"), b"seven"), (A("shutdown"), 70_000), (A("init"), 1, {A("a"): [1, 2]})):
        frame = encode(term)
        for end in range(len(frame)):
            with pytest.raises(ProtocolError):
                messages.parse(frame[:end])


def test_what_the_server_says_has_the_shape_of_the_specification():
    """Atom tags and keys, binaries for text, the id as it came."""
    assert decode(messages.pong(ID, {"os_pid": 1})) == ("pong", "7", {"os_pid": 1})
    assert decode(messages.error(ID, {"kind": A("timeout")})) == ("error", "7", {"kind": "timeout"})
    assert decode(messages.goodbye("shutdown")) == ("goodbye", "shutdown")
    assert decode(messages.hello({"python": "3"})) == ("hello", 1, {"python": "3"})
    output = decode(messages.output(ID, "stdout", b"hi"))
    assert output == ("output", "7", "stdout", "hi")
    assert type(output[2]) is Atom
    for written in (
        messages.pong(ID, {}),
        messages.error(ID, {}),
        messages.output(ID, "stderr", b""),
    ):
        assert ID in written[:20]
