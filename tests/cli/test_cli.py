"""The commands as people run them: a process, its pipes, its exit status."""

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import port_server

COMMAND = [sys.executable, "-m", "port_server"]


def run(*arguments, given=b"", **options):
    """Run one command to its end; give (status, stdout, stderr)."""
    if isinstance(given, str):
        given = given.encode()
    done = subprocess.run(
        [*COMMAND, *arguments], input=given, capture_output=True, timeout=60, check=False, **options
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


def frames(text):
    """Give what `encode` makes of some Erlang terms."""
    done = subprocess.run(
        [*COMMAND, "encode"], input=text.encode(), capture_output=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sum(range(10))", "45"),
        ("", "nil"),
        ("x = 1", "nil"),
        ("[None, True, 'é', b'\\x00', 1.0]", '[nil, true, "é", <<0>>, 1.0]'),
        ("{'a': (1, 'x')}", '%{"a" => {1, "x"}}'),
        ("from port_server.etf import Atom\n{Atom('a'): Atom('B c')}", '%{a: :"B c"}'),
        ("{3}", "MapSet.new([3])"),
        ("range(1, 4)", "1..3"),
        ("import datetime\ndatetime.date(2024, 1, 2)", "~D[2024-01-02]"),
        ("float('nan')", ":nan"),
        ("return 7", "7"),
        ("for i in range(2): yield i", "0\n1"),
        ("import asyncio\nawait asyncio.sleep(0, 5)", "5"),
        ("print('first')\n'then'", 'first\n"then"'),
    ],
)
def test_eval_prints_the_value_as_an_elixir_term(code, text):
    """What the last expression gives is printed as inspect/2 would print it."""
    assert run("eval", code) == (0, text + "\n", "")


def test_eval_prints_erlang_too():
    """--erlang prints the same value in Erlang's syntax."""
    status, out, _ = run("eval", "--erlang", "{'a': [1, None, 'é']}")
    assert (status, out) == (0, '#{<<"a">> => [1, nil, <<"é"/utf8>>]}\n')


def test_eval_shows_what_cannot_cross_as_an_object():
    """A value without a term stays in Python; its handle is shown."""
    status, out, _ = run("eval", "object()")
    assert status == 0
    assert out.startswith('%PyPort.Object{type: "object", repr: "<object object at ')


def test_an_object_is_shown_with_the_type_and_the_repr_of_a_servers_handle():
    """Classes of the code itself have no module, and their own repr is not asked."""
    code = "class A:\n    def __repr__(self): return 'x' * 1000\nA()"
    status, out, _ = run("eval", code)
    assert status == 0
    assert out.startswith('%PyPort.Object{type: "A", repr: "<__main__.A object at ')


def test_eval_takes_globals_as_erlang_terms():
    """Values come in the way Elixir's do: binaries are str."""
    assert run("eval", "-g", "rows=[[1,2],[3]]", "-g", 's=<<"x">>', "(sum(map(sum, rows)), s)") == (
        0,
        '{6, "x"}\n',
        "",
    )


@pytest.mark.parametrize("setting", ["rows", "1x=1", "rows=[1", "rows=a b", "rows="])
def test_a_global_that_is_none_is_refused_before_anything_runs(setting):
    """Exit status 2, and a sentence that names the option."""
    status, out, err = run("eval", "-g", setting, "print('ran')")
    assert (status, out) == (2, "")
    assert "--global" in err


def test_eval_reads_code_from_stdin():
    """`-` takes a whole script."""
    assert run("eval", "-", given="x = 20\nx + 1\n") == (0, "21\n", "")
    assert run("eval", "-", given="\ufeff6 * 7") == (0, "42\n", "")


@pytest.mark.parametrize(("command", "what"), [(["eval", "-"], "eval"), (["repl"], "repl")])
def test_code_that_is_not_utf8_is_refused_in_a_sentence(command, what):
    """Status 1, and no traceback of the tool's own."""
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    status, out, err = run(*command, given=b"'\xff'\n", env=os.environ | strict)
    assert (status, out) == (1, "")
    assert err.startswith(f"port-server {what}: the ")
    assert "not UTF-8" in err
    assert len(err.splitlines()) == 1


def test_a_failure_is_pythons_own_traceback_and_status_1():
    """The source line is there, and no frame of the tool's own."""
    status, out, err = run("eval", "-", given="def f():\n    return 1 / 0\n\nf()\n")
    assert (status, out) == (1, "")
    assert err.startswith('Traceback (most recent call last):\n  File "<stdin>", line 4')
    assert "    return 1 / 0\n" in err
    assert err.endswith("ZeroDivisionError: division by zero\n")
    assert "port_server" not in err


def test_a_syntax_error_says_where():
    """As Python would report it."""
    status, _, err = run("eval", "x =")
    assert status == 1
    assert "x =" in err
    assert "SyntaxError: invalid syntax" in err


def test_sys_exit_is_an_error_as_it_is_in_the_server():
    """The tool shows what Elixir would get, not an exit status from inside."""
    status, _, err = run("eval", "import sys; sys.exit(0)")
    assert status == 1
    assert err.endswith("SystemExit: 0\n")


def test_a_value_that_cannot_become_a_term_says_why():
    """A cycle is refused by the codec; the sentence is the codec's."""
    status, _, err = run("eval", "a = []; a.append(a); a")
    assert status == 1
    assert "the value cannot become a term" in err


def test_encode_and_decode_are_each_others_inverse():
    """Terms come back as they were, one line each."""
    lines = ['{eval, <<"1">>, #{}, <<"1 + 1">>, #{}}', "[1, 2 | 3]", "<<5:3>>", "'A b'"]
    text = "".join(f"{line}.\n" for line in lines)
    assert run("decode", given=frames(text)) == (0, "\n".join(lines) + "\n", "")


def test_decode_prints_elixir_too():
    """--elixir prints the same terms in Elixir's syntax."""
    given = frames('{ok, #{a => <<"x">>}}. {a, 1.0e10}.')
    assert run("decode", "--elixir", given=given)[1] == '{:ok, %{a: "x"}}\n{:a, 10000000000.0}\n'


def test_encode_leaves_out_a_bad_term_whole_and_points_at_it():
    """Line, column, what was expected, the place; the terms around it go out."""
    done = subprocess.run(
        [*COMMAND, "encode"],
        input=b"a.\n{b, [c d]}.\ne.\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == frames("a. e.")
    assert done.stderr.decode().splitlines() == [
        "port-server encode: line 2, column 8: expected `,`, `|` or `]`, found d",
        "    {b, [c d]}.",
        "           ^",
    ]


def test_encode_refuses_what_is_not_utf8_and_keeps_what_came_before():
    """The byte is counted from the start of the input."""
    status, out, err = run("encode", given=b"a.\n\xff b.\n")
    assert status == 1
    assert out == frames("a.").decode(errors="replace")
    assert "byte 3 of the input is not UTF-8" in err


def test_each_term_leaves_as_soon_as_its_full_stop_is_read():
    """Through both commands, without the end of the input: neither holds anything back."""
    with (
        subprocess.Popen(
            [*COMMAND, "encode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as encode,
        subprocess.Popen(
            [*COMMAND, "decode"], stdin=encode.stdout, stdout=subprocess.PIPE
        ) as decode,
    ):
        encode.stdout.close()
        for number in range(3):
            encode.stdin.write(b"{a, %d}.\n" % number)
            encode.stdin.flush()
            assert decode.stdout.readline() == b"{a, %d}\n" % number
        encode.stdin.close()
        assert decode.stdout.read() == b""
    assert (encode.returncode, decode.returncode) == (0, 0)


def test_decode_goes_on_behind_a_frame_that_holds_no_term():
    """The stream is still in step: the frame is reported, the next one is printed."""
    good = frames("ok.")
    status, out, err = run("decode", given=good + b"\0\0\0\5hello" + b"\0\0\0\2\x83a" + good)
    assert (status, out) == (1, "ok\nok\n")
    assert "frame 2, at byte 9, 5 bytes, holds no term" in err
    assert "expected the version byte 131" in err
    assert "it begins hello" in err
    assert "frame 3, at byte 18, 2 bytes" in err


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\0", "within the four bytes of a frame's length"),
        (b"\0\0\0\x09\x83h", "still missing of it: 7 bytes"),
        (b"stray print\n", "a frame of 1937011297 bytes is announced"),
    ],
)
def test_decode_says_how_a_stream_broke_off(tail, reason):
    """What was whole is printed; then the frame's number, its place, and what is wrong."""
    status, out, err = run("decode", given=frames("ok.") + tail)
    assert (status, out) == (1, "ok\n")
    assert "frame 2, at byte 9: " in err
    assert reason in err


def test_decode_shows_what_python_could_not_hold():
    """Equal keys, keys that are lists: nothing that a frame may hold is refused."""
    text = "#{1 => a, 1.0 => b, true => c, [1] => d, #{} => e}"
    assert run("decode", given=frames(text + "."))[1] == text + "\n"


def test_the_whole_conversation_by_hand():
    """The pipe of the README: terms in, the server's answers out."""
    script = " | ".join(
        f"{sys.executable} -m port_server {name}" for name in ("encode", "serve", "decode")
    )
    done = subprocess.run(
        ["sh", "-c", script],
        input='{eval, <<"1">>, #{}, <<"1 + 1">>, #{}}.\n{eval, <<"2">>, #{}, <<"1 / 0">>, #{}}.\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    hello, first, second = done.stdout.splitlines()
    assert hello.startswith("{hello, 1, #{")
    assert first == '{ok, <<"1">>, 2}'
    assert second.startswith('{error, <<"2">>, #{')
    assert 'type => <<"ZeroDivisionError">>' in second


def on_a_terminal(*arguments, typed=()):
    """Run a command on a pseudo-terminal, typing at each prompt; give (status, all it printed)."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*COMMAND, *arguments])
    seen, typed = b"", list(typed)
    while select.select([fd], [], [], 30)[0]:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # how Linux says that the other side is gone
            break
        seen += piece
        if typed and seen.endswith(b"py> "):
            os.write(fd, typed.pop(0))
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["serve", "encode", "decode"])
def test_a_person_on_a_terminal_is_told_how_to_use_it(command):
    """Status 2 and an example, instead of waiting in silence or spilling bytes on the screen."""
    status, seen = on_a_terminal(command)
    assert status == 2
    assert "port-server serve | port-server" in seen


def test_serve_explains_itself():
    """What it is, how it is meant to be started, by hand, and what a person may want instead."""
    _, seen = on_a_terminal("serve")
    assert "{packet, 4}" in seen
    assert "PyPort.Server" in seen
    assert "port-server repl" in seen


def test_the_repl_keeps_its_names_and_prints_terms():
    """One session: blocks, the last value as `_`, errors that do not end it."""
    typed = "x = 3\ndef f(a):\n    return {a: x}\n\nf('k')\n1/0\n_\nreturn 5\n"
    status, out, err = run("repl", given=typed)
    assert (status, out) == (0, '%{"k" => 3}\n%{"k" => 3}\n5\n')
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize(
    ("typed", "status"), [("exit()", 0), ("quit(3)", 3), ("raise SystemExit", 0)]
)
def test_exit_leaves_the_repl_with_its_status(typed, status):
    """What a person types at a Python prompt to leave it, without a word about it."""
    assert run("repl", given=f"1\n{typed}\n2\n") == (status, "1\n", "")


def test_the_repl_on_a_terminal_prompts_and_leaves_on_ctrl_d():
    """As every REPL does."""
    status, seen = on_a_terminal("repl", typed=[b"6 * 7\n", b"\x04"])
    assert status == 0
    assert "py> " in seen
    assert "\n42\n" in seen


@pytest.mark.parametrize("command", ["decode", "encode"])
def test_a_reader_that_leaves_early_ends_it_quietly(command):
    """`| head -1` leaves no traceback; the status is that of SIGPIPE."""
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [*COMMAND, command], stdin=subprocess.PIPE, stdout=write_end, stderr=subprocess.PIPE
    ) as child:
        os.close(write_end)
        os.close(read_end)
        child.stdin.write(b"ok.\n" if command == "encode" else frames("ok."))
        child.stdin.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("encode",), b"ok.\n"),
        (("decode",), frames("ok.")),
        (("eval", "print('here', flush=True)\nwhile True: pass"), b""),
    ],
    ids=["encode", "decode", "eval"],
)
def test_ctrl_c_ends_it_quietly(arguments, given):
    """Status 130, as a shell has it, and no traceback."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell without job control has its background jobs ignore SIGINT, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
    ) as child:
        child.stdin.write(given)
        child.stdin.flush()
        assert child.stdout.read(1) != b""  # it is at work by now
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == b""
    assert child.returncode == 130


def test_doctor_finds_this_installation_healthy():
    """It reports what runs, asks a real server, and exits 0."""
    status, out, err = run("doctor")
    assert (status, err) == (0, ""), out + err
    for label in ("python:", "codec:", "server:", "start:", "round trip:", "installed in:"):
        assert f"\n{label}" in out
    assert f"installed in:   {Path(port_server.__file__).parent}\n" in out
    assert out.endswith("Everything works.\n")


def test_doctor_is_not_confused_by_what_a_server_says_unasked(tmp_path):
    """On a busy machine a heartbeat comes between two answers."""
    (tmp_path / "sitecustomize.py").write_text(
        "from port_server.settings import Settings\n"
        "Settings.__init__.__kwdefaults__['heartbeat_interval_ms'] = 1\n"
    )
    status, out, err = run("doctor", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (status, err) == (0, ""), out + err


def test_doctor_says_why_the_native_codec_is_not_used():
    """The reason stands behind the codec's name, and the status stays 0: it works."""
    status, out, _ = run("doctor", env=os.environ | {"PORT_SERVER_CODEC": "erlang-py"})
    assert status == 0
    assert "erlang-py, because PORT_SERVER_CODEC asks for it" in out


def test_doctor_reports_a_server_that_cannot_start(tmp_path):
    """Status 1, and what the server said before it ended."""
    # The first process to come by is the doctor itself; the second one is its server.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('SECOND'):\n"
        "    os.write(2, b'no luck today')\n    os._exit(7)\nos.environ['SECOND'] = '1'\n"
    )
    status, out, _ = run("doctor", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert status == 1
    assert "does not work: it ended with status 7 and said:\nno luck today" in out


def test_doctor_gives_a_hint_about_a_log_level_that_is_none():
    """A typing error in the environment is found here, not in the dark."""
    _, out, _ = run("doctor", env=os.environ | {"PORT_SERVER_LOG": "loud"})
    assert "PORT_SERVER_LOG is 'loud'" in out


def test_help_shows_every_command_with_an_example():
    """The help is what people read first."""
    status, out, _ = run("--help")
    assert status == 0
    for name in ("serve", "eval", "repl", "encode", "decode", "doctor"):
        assert f"    {name} " in out
        status, out_of_command, _ = run(name, "--help")
        assert status == 0
        assert "port-server" in out_of_command
        assert "example" in out_of_command or "port-server encode |" in out_of_command


def test_version_and_misuse():
    """--version prints it; no command, or an unknown one, is status 2 with the usage."""
    assert run("--version")[1].startswith("port-server 0.")
    assert run()[0] == 2
    status, _, err = run("nope")
    assert status == 2
    assert "usage:" in err


def test_the_start_path_imports_nothing_slow():
    """The command `serve` and the log import nothing that a Python has not loaded at its start."""
    code = (
        "import os, sys, port_server; before = set(sys.modules)\n"
        "import port_server.cli.serve, port_server.log\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    others = [name for name in done.stdout.split() if not name.startswith("port_server")]
    assert others in ([], ["__future__"])
