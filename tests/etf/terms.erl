%% Writes terms of every kind for test_beam.py, and compares what comes back, with =:=.
%% Called with erl -noshell -run terms main write FILE | compare FILE.
-module(terms).
-export([main/1]).

main(["write", File]) ->
    Frames = [frame(term_to_binary(T, Options))
              || T <- terms(), Options <- options()],
    Local = case erlang:system_info(otp_release) >= "26" of
        true -> [frame(term_to_binary({a, 1}, [local]))];
        false -> []
    end,
    ok = file:write_file(File, [Frames, Local]),
    io:format("~b ~b", [length(Frames), length(Local)]),
    halt(0);
%% In: the frames as they came back, each after the original.
main(["compare", File]) ->
    {ok, Data} = file:read_file(File),
    Wrong = [{A, B} || {A, B} <- pairs(frames(Data)),
                       not same(binary_to_term(A), binary_to_term(B))],
    [io:format("sent ~p~n got ~p~n", [binary_to_term(A), binary_to_term(B)]) || {A, B} <- Wrong],
    halt(case Wrong of [] -> 0; _ -> 1 end);
%% In: pairs of an Erlang expression's text and a frame that must be that value.
main(["evaluate", File]) ->
    {ok, Data} = file:read_file(File),
    Wrong = [{T, B} || {T, B} <- pairs(frames(Data)),
                       not same(value(T), binary_to_term(B))],
    [io:format("wanted ~s~n got ~p~n", [T, binary_to_term(B)]) || {T, B} <- Wrong],
    halt(case Wrong of [] -> 0; _ -> 1 end).

%% 0.0 =:= -0.0 on OTP 25, so floats are compared by their bytes.
same(A, B) -> A =:= B andalso term_to_binary(A) =:= term_to_binary(B).

value(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text) ++ "."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, []),
    Value.

frame(B) -> [<<(byte_size(B)):32>>, B].
frames(<<N:32, B:N/binary, Rest/binary>>) -> [B | frames(Rest)];
frames(<<>>) -> [].
pairs([A, B | Rest]) -> [{A, B} | pairs(Rest)];
pairs([]) -> [].

options() ->
    [[], [{minor_version, 0}], [{minor_version, 1}], [{minor_version, 2}]] ++
        try term_to_binary(a, [deterministic]) of _ -> [[deterministic]] catch _:_ -> [] end.

terms() ->
    [0, 1, 255, 256, -1, -128, 16#7fffffff, 16#80000000, -16#80000000, -16#80000001]
        ++ [S * ((1 bsl N) + D) || N <- [27, 28, 31, 32, 59, 60, 63, 64, 65, 127, 128, 2039, 2040, 2048],
                                   D <- [-1, 0, 1], S <- [1, -1]]
        ++ [0.0, -0.0, 1.0, -1.5, 3.141592653589793, 1.0e308, 5.0e-324, -2.2250738585072014e-308]
        ++ [ok, true, false, nil, undefined, '', 'with space', 'Elixir.Enum', infinity, nan,
            list_to_atom([233]), list_to_atom([8364, 128512]),
            list_to_atom(lists:duplicate(255, $a)), list_to_atom(lists:duplicate(255, 233))]
        ++ [{}, {1}, {a, b}, list_to_tuple(lists:seq(1, 255)), list_to_tuple(lists:seq(1, 256)),
            list_to_tuple(lists:seq(1, 1000)), {{{}}, [{}]}]
        ++ [[], [1], "text", lists:duplicate(65535, $x), lists:duplicate(65536, $x), [1 | 2],
            [a, b | c], [[]], [[], [[]]], [1.0, 2.0], [1, 2.0, a], [256], [-1], "\x{20ac}",
            lists:seq(1, 300), [1 | <<"t">>], [{a, 1}, {b, 2}], [[1 | 2] | 3]]
        ++ [<<>>, <<"text">>, <<0>>, <<255, 254>>, <<"h", 195, 169>>,
            binary:copy(<<"x">>, 70000), <<1:1>>, <<5:3>>, <<1, 2, 3:7>>, <<0:1>>,
            list_to_binary(lists:seq(0, 255))]
        ++ [#{}, #{a => 1}, #{<<"a">> => 1}, #{1 => 2}, #{1.5 => x}, #{[1] => 2}, #{"ab" => 2},
            #{{a, [1]} => 2}, #{#{a => [1]} => 2}, #{[1 | 2] => 3}, #{<<1:1>> => 1}, #{[] => []},
            maps:from_list([{N, N * N} || N <- lists:seq(1, 33)]),
            maps:from_list([{integer_to_binary(N), [N]} || N <- lists:seq(1, 200)]),
            #{a => #{b => #{c => [#{d => {1, [2]}}]}}}]
        ++ [self(), make_ref(), hd(erlang:ports()), fun lists:map/2, fun erlang:'+'/2,
            fun(X) -> X end, fun() -> {self(), make_ref()} end,
            list_to_pid("<0.0.0>"), list_to_pid("<0.12345.3>"),
            #{self() => 1}, {make_ref(), make_ref()}]
        ++ [#{'__struct__' => 'Elixir.User', name => <<"Eve">>, age => 7},
            #{'__struct__' => 'Elixir.PyPort.Bytes', data => <<255>>},
            #{'__struct__' => not_a_module, x => 1}, #{'__struct__' => 1, x => 1},
            #{'__struct__' => 'Elixir.MapSet', map => #{1 => [], [2] => []}, version => 2},
            #{'__struct__' => 'Elixir.Range', first => 1, last => 10, step => 3},
            #{'__struct__' => 'Elixir.Range', first => 5, last => 1, step => -2},
            #{'__struct__' => 'Elixir.Date', calendar => 'Elixir.Calendar.ISO',
              year => 2024, month => 2, day => 29},
            #{'__struct__' => 'Elixir.Date', calendar => 'Elixir.Calendar.ISO',
              year => -1, month => 2, day => 28},
            #{'__struct__' => 'Elixir.Time', calendar => 'Elixir.Calendar.ISO',
              hour => 23, minute => 59, second => 1, microsecond => {123456, 6}},
            #{'__struct__' => 'Elixir.Decimal', sign => -1, coef => 12345, exp => -2},
            #{'__struct__' => 'Elixir.Decimal', sign => 1, coef => 'NaN', exp => 0},
            #{'__struct__' => 'Elixir.Decimal', sign => -1, coef => inf, exp => 0},
            #{'__struct__' => 'Elixir.Decimal', sign => 1, coef => 0, exp => 5}]
        ++ deep(12) ++ lists:sublist(deep(400), 3).

deep(0) -> [];
deep(N) -> [lists:foldl(fun(_, T) -> {T} end, [], lists:seq(1, N)),
            lists:foldl(fun(_, T) -> [T] end, a, lists:seq(1, N)),
            lists:foldl(fun(_, T) -> #{a => T} end, a, lists:seq(1, N))].
