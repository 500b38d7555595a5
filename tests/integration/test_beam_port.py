"""A real BEAM on the other end: Erlang's own Port.open, term_to_binary and binary_to_term."""

import shutil
import subprocess
import sys

import pytest
from conftest import SERVE

pytestmark = pytest.mark.skipif(shutil.which("erl") is None, reason="Erlang is not installed")

# What each program finds: a port, and functions to talk to it.
PRELUDE = r"""
-module(talk).
-compile([export_all, nowarn_export_all]).

% `safe` refuses atoms that this module has not loaded: every one that the server writes.
atoms() ->
    [hello, goodbye, ok, error, output, pong, stdout, stderr, shutdown, sigterm,
     python, implementation, libc, machine, os_pid, port_fd, codec, server_version, features,
     executable,
     eval, call, ping, cancel_queued, uptime_ms, requests, kind, type, message, traceback, frames,
     objects, sessions, logging, heartbeat, async, invoke, send, stream, sequence, monotonic_ms,
     state, idle, busy, running, running_ms, queue, rss_bytes, tasks, calls, streams, yield,
     unavailable, log, logger, debug, info, warning, critical, request, open, importing,
     waiting, blocking, code,
     file, line, function, source, begun, protocol, decode, encode, timeout, cancelled].

open() ->
    [Python, Code] = [unicode:characters_to_list(A) || A <- init:get_plain_arguments()],
    Port = open_port({spawn_executable, Python},
                     [{args, ["-c", Code]}, {packet, 4}, binary, exit_status, use_stdio]),
    send(Port, {init, 1, #{}}),
    {hello, 1, #{python := _}} = next(Port),
    Port.

send(Port, Term) -> port_command(Port, term_to_binary(Term)).

next(Port) -> next(Port, 10000).
next(Port, Timeout) ->
    receive
        {Port, {data, Frame}} ->
            {Term, Used} = binary_to_term(Frame, [safe, used]),
            Used = byte_size(Frame),
            % A beat comes whenever a second has passed.
            case Term of {heartbeat, _} -> next(Port, Timeout); _ -> Term end;
        {Port, {exit_status, Status}} -> {exit_status, Status}
    after Timeout -> erlang:error(no_answer)
    end.

ask(Port, Term) -> send(Port, Term), next(Port).
eval(Port, Code) -> eval(Port, Code, #{}).
eval(Port, Code, Globals) -> ask(Port, {eval, <<"1">>, #{}, Code, Globals}).

main() ->
    Result = (catch talk:run()),
    io:format("~tp~n", [Result]),
    halt(case Result of passed -> 0; _ -> 1 end, [{flush, true}]).
"""


def erlang(tmp_path, body):
    """Compile and run an Erlang module whose run/0 must give `passed`."""
    (tmp_path / "talk.erl").write_text(PRELUDE + body)
    subprocess.run(["erlc", "talk.erl"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    done = subprocess.run(
        ["erl", "-noshell", "-s", "talk", "main", "-extra", sys.executable, SERVE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "passed"), done.stdout + done.stderr
    return done


def test_a_session_with_a_port(tmp_path):
    """Hello, eval, call, output, error, ping, shutdown, exit status: as the BEAM sees them."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    {ok, <<"1">>, 2} = eval(Port, <<"1 + 1">>),
    {ok, <<"1">>, <<"3">>} = eval(Port, <<"str(a + b)">>, #{a => 1, <<"b">> => 2}),
    {ok, <<"2">>, 3.0} = ask(Port, {call, <<"2">>, #{}, <<"math:sqrt">>, [9.0], #{}}),
    {output, <<"1">>, stdout, <<"hi\n">>} = eval(Port, <<"print('hi')">>),
    {ok, <<"1">>, nil} = next(Port),
    {error, <<"1">>, #{kind := python, type := <<"ZeroDivisionError">>,
                       message := <<"division by zero">>, traceback := <<"Traceback", _/binary>>,
                       frames := [#{file := <<"lib/a.ex">>, line := 7, function := <<"<module>">>,
                                    source := <<"1 / 0">>}]}} =
        eval(Port, {code, <<"1 / 0">>, <<"lib/a.ex">>, 7}),
    {pong, <<"p">>, #{os_pid := Pid}} = ask(Port, {ping, <<"p">>}),
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    {goodbye, shutdown} = ask(Port, {shutdown, 1000}),
    {exit_status, 0} = next(Port),
    passed.
""",
    )


def test_values_come_back_as_they_went(tmp_path):
    """What the BEAM wrote with its own term_to_binary is the same when it has read it again."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    Values = [nil, true, false, some_atom, 'Weird Atom', 0, -1, 255, 256, 1 bsl 31, -(1 bsl 200),
              1.5, -0.0, <<>>, <<"text">>, <<"ümläut"/utf8>>, <<5:3>>, [], [1, 2, 3], [1 | 2],
              "charlist", lists:seq(1, 1000), {}, {1, {2}}, #{}, #{a => 1, <<"b">> => [c]},
              self(), make_ref(), Port, fun erlang:abs/1, fun(X) -> X end,
              lists:duplicate(70000, 7), #{{1, 2} => #{[] => <<"deep">>}}],
    [{ok, <<"1">>, Value} = eval(Port, <<"v">>, #{v => Value}) || Value <- Values],
    passed.
""",
    )


def test_nothing_a_request_prints_reaches_the_port(tmp_path):
    """A stray print would be read as a length of 1.7 GB, and the port would go silent."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    Codes = [<<"import os; os.write(1, b'raw' * 100); None">>,
             <<"import subprocess; subprocess.run(['echo', 'child']); None">>,
             <<"import ctypes; c = ctypes.CDLL(None); c.puts(b'C'); c.fflush(None); None">>,
             <<"import sys; sys.__stdout__.write('dunder'); sys.__stdout__.flush()">>,
             <<"import os; os.close(1)">>],
    [begin {ok, <<"1">>, nil} = eval(Port, Code), {ok, <<"1">>, 2} = eval(Port, <<"1 + 1">>) end
     || Code <- Codes],
    passed.
""",
    )


def test_a_thousand_requests_at_once(tmp_path):
    """Written without waiting; each is answered once, in order."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    Ids = [<<N:64>> || N <- lists:seq(1, 1000)],
    [send(Port, {eval, Id, #{deadline_ms => 60000}, <<"n * 2">>,
                 #{n => binary:decode_unsigned(Id)}}) || Id <- Ids],
    [begin Double = binary:decode_unsigned(Id) * 2, {ok, Id, Double} = next(Port) end || Id <- Ids],
    passed.
""",
    )


def test_large_binaries_cross_both_ways(tmp_path):
    """Twenty megabytes, three times."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    [begin
         Data = crypto:strong_rand_bytes(20000000),
         send(Port, {eval, <<"1">>, #{binary_as => bytes}, <<"d">>, #{d => Data}}),
         {ok, <<"1">>, Data} = next(Port, 30000)
     end || _ <- [1, 2, 3]],
    passed.
""",
    )


def test_a_port_that_is_closed_leaves_no_process(tmp_path):
    """The end of input is enough for an idle server."""
    erlang(
        tmp_path,
        r"""
run() ->
    Port = open(),
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    Proc = "/proc/" ++ integer_to_list(Pid),
    true = filelib:is_dir(Proc),
    port_close(Port),
    gone(Proc, 200).

gone(_Proc, 0) -> still_there;
gone(Proc, Tries) ->
    case filelib:is_dir(Proc) of
        true -> timer:sleep(10), gone(Proc, Tries - 1);
        false -> passed
    end.
""",
    )


def test_code_that_exits_is_an_exit_status(tmp_path):
    """os._exit and a segfault, as the owner of the port learns of them."""
    erlang(
        tmp_path,
        r"""
run() ->
    {exit_status, 3} = eval(open(), <<"import os; os._exit(3)">>),
    {exit_status, 139} = eval(open(), <<"import ctypes; ctypes.string_at(0)">>),
    passed.
""",
    )
