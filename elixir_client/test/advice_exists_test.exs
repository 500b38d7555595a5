defmodule PyPort.AdviceExistsTest do
  # All that errors and log lines say, of both halves: whatever they name as an option, a function, a task or a setting
  # exists. Read from the sources, so a new message is looked at without being listed anywhere.
  use ExUnit.Case, async: true

  alias PyPort.{Env, Options}

  @python Path.expand("../../port_server", __DIR__)
  @lib Path.expand("../lib", __DIR__)

  # Words with an underscore, or with a colon behind them, that are no option of ours: names of other programs, and of
  # fields and modules.
  @foreign ~w(
    port_server py_port my_app my_app_python uv_init init_code exit_status pass_fds remote_pdb set_trace
    find_executable open_port port_command spawn_executable term_to_binary
    binary_as floats_as to_struct python_type deadline_ms max_nested_calls by_reference_from ml_dtypes arrow_stream
  )

  # --- what exists ----------------------------------------------------------------------------

  # Each place that takes options lists them where one is unknown.
  defp options do
    askers = [
      &Options.request!/1,
      &Options.call!/1,
      &Options.stream!/1,
      &Options.pool!/1,
      &Options.batcher!/1,
      &Options.batched!/1,
      &Options.interactive!/1,
      &Env.Config.new!(:default, &1, "/")
    ]

    listed =
      for ask <- askers,
          %{message: message} = assert_raise(ArgumentError, fn -> ask.(no_such_option: 1) end),
          [_, names] = Regex.run(~r/Known options: (.*)$|takes (.*)$/, message),
          [name] <- Regex.scan(~r/:\w+/, names),
          do: String.trim_leading(name, ":")

    MapSet.new(listed ++ ~w(environments pool decimal uv_init carry_python releases steps compilers))
  end

  # --- what is said ---------------------------------------------------------------------------

  defp elixir_messages do
    for path <- Path.wildcard(Path.join(@lib, "**/*.ex")),
        text <- path |> File.read!() |> Code.string_to_quoted!() |> texts(),
        do: {Path.relative_to(path, @lib), text}
  end

  # Of an interpolated text the parts that are written there; without documentation and types.
  defp texts(quoted) do
    {_quoted, texts} =
      Macro.prewalk(quoted, [], fn
        {:@, _, [{name, _, _}]}, texts when name in [:moduledoc, :doc, :typedoc, :shortdoc, :spec, :type] ->
          {nil, texts}

        {sigil, _, _}, texts when sigil in [:sigil_r, :sigil_w] ->
          {nil, texts}

        {:<>, _, _} = concatenated, texts ->
          {nil, [concatenated |> parts() |> Enum.join() | texts]}

        {:<<>>, _, _} = interpolated, texts ->
          {nil, [interpolated |> parts() |> Enum.join() | texts]}

        text, texts when is_binary(text) ->
          {text, [text | texts]}

        other, texts ->
          {other, texts}
      end)

    # Programs in strings are no messages.
    Enum.filter(texts, &(&1 =~ " " and not (&1 =~ ~r/^(import|from|set -f)\b/)))
  end

  defp parts(quoted) do
    {_quoted, parts} =
      Macro.prewalk(quoted, [], fn
        text, parts when is_binary(text) -> {text, [text | parts]}
        other, parts -> {other, parts}
      end)

    Enum.reverse(parts)
  end

  defp python_messages do
    for path <- Path.wildcard(Path.join(@python, "**/*.{py,c}")),
        {:ok, texts} = PyPort.eval(texts_of(Path.extname(path)), %{path: path}),
        text <- texts,
        do: {Path.relative_to(path, @python), text}
  end

  # Without documentation, which has a signature before `--`.
  defp texts_of(".c") do
    ~S'''
    import re
    text = open(path).read()
    strings = re.findall(r'(?:"(?:[^"\\\n]|\\.)*"\s*)+', text)
    [s for s in ("".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', one)) for one in strings) if " " in s and "--\\n" not in s]
    '''
  end

  defp texts_of(".py") do
    ~S'''
    import ast
    tree = ast.parse(open(path).read())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(p.value for p in node.values if isinstance(p, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.append(node.value)
    [text for text in found if " " in text]
    '''
  end

  # --- what a text names that does not exist --------------------------------------------------

  defp missing(text, options),
    do: functions(text) ++ tasks(text) ++ commands(text) ++ named_options(text, options)

  defp functions(text) do
    for [name, module, function, arity] <- Regex.scan(~r/((?:[A-Z]\w*\.)+)(\w+[?!]?)\/(\d)/, text),
        module = module |> String.trim_trailing(".") |> List.wrap() |> Module.concat(),
        not exists?(module, String.to_atom(function), String.to_integer(arity)),
        do: name
  end

  defp exists?(module, function, arity) do
    Code.ensure_loaded?(module) and
      (function_exported?(module, function, arity) or macro_exported?(module, function, arity))
  end

  defp tasks(text) do
    for [said, name] <- Regex.scan(~r/\bmix ([a-z_]+(?:\.[a-z_]+)*)/, text),
        name not in ["run"],
        Mix.Task.get(name) == nil,
        do: said
  end

  defp commands(text) do
    for [said, name] <- Regex.scan(~r/port-server ([a-z]+)\b/, text),
        name not in ~w(eval repl encode decode serve doctor),
        text =~ "`port-server #{name}",
        do: said
  end

  # `option :x`, `:x_y`, `x: value` and `max_x`: written as options are.
  defp named_options(text, options) do
    patterns = [
      ~r/\boptions? :(\w+)/,
      ~r/(?<![:\w]):([a-z]+_\w+)/,
      ~r/(?<![\w:.])([a-z_]+): (?=:[a-z]|true\b|false\b|nil\b|\[[{:"A-Z])/,
      ~r/\boption ([a-z_]+):/,
      ~r/\(see :?([a-z_]+):?\)/,
      ~r/(?<![\w\/.:"'-])([a-z]+(?:_[a-z]+)+)(?![\w\/.(-])/
    ]

    for pattern <- patterns,
        [_said, name] <- Regex.scan(pattern, text),
        name not in @foreign,
        not MapSet.member?(options, name),
        do: name
  end

  # --- the tests ------------------------------------------------------------------------------

  test "every option, function, task and command that a message names exists" do
    options = options()

    wrong =
      for {file, text} <- elixir_messages() ++ python_messages(),
          name <- missing(text, options),
          do: {file, name, text}

    assert wrong == []
  end

  test "what does not exist is found" do
    options = options()

    for {text, name} <- [
          {"Flatten it, or raise max_dept", "max_dept"},
          {"give it more time with the option :time_out", "time_out"},
          {"give it more time with the option timeot:", "timeot"},
          {"see PyPort.stack/1 for that", "PyPort.stack/1"},
          {"Run `mix py_port.lok` first", "mix py_port.lok"},
          {"start it with carry_pythn: true", "carry_pythn"}
        ],
        do: assert(name in missing(text, options), text)
  end
end
