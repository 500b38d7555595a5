defmodule PyPort.LayersTest do
  # How the client's modules hang together: calls point down, the parts of a server's state have one module each, and a
  # module's test is found by its path. The arrows stand in docs/contributing.md, too.
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO

  # From below: a layer, its files under lib/py_port (a name ending in a slash is a directory), and the layers that it may
  # use besides itself. The first layer that has a file counts.
  @layers [
    {:base,
     ~w(allow bytes callback collector code encoder session object values deadline did_you_mean error options) ++
       ~w(status_page stderr_file telemetry libraries tensor table view), []},
    {:wire, ~w(wire wire/ reply), [:base]},
    {:env, ~w(env env/ release), []},
    {:connection,
     ~w(connection shared_memory registry reaper sources pool/members pool/queue output ownership remote callbacks),
     [:base, :wire]},
    {:server, ~w(server server/), [:base, :wire, :env, :connection]},
    {:pool, ~w(pool/), [:base, :env, :connection, :server]},
    {:request, ~w(admission cast locator reload request stream stream/),
     [:base, :wire, :connection, :server, :pool]},
    {:api,
     ~w(/py_port application batcher pool status status/ sigils interactive syntax_check erlang module object/ /mix/),
     [:base, :wire, :env, :connection, :server, :pool, :request]}
  ]

  # By mix xref: what a file uses, of each file. At run time or at compile time makes no difference.
  defp uses do
    text = capture_io(fn -> Mix.Task.rerun("xref", ["graph", "--format", "plain"]) end)

    {_file, uses} =
      text
      |> String.split("\n", trim: true)
      |> Enum.reduce({nil, %{}}, fn line, {file, uses} ->
        case Regex.run(~r/^[|`]-- (\S+)/, line) do
          [_, used] -> {file, Map.update!(uses, file, &[used | &1])}
          nil -> {line, Map.put(uses, line, [])}
        end
      end)

    uses = for {"lib/" <> _ = file, used} <- uses, into: %{}, do: {file, Enum.filter(used, &(&1 =~ ~r/^lib/))}
    assert map_size(uses) > 60, "mix xref gave no graph: #{text}"
    uses
  end

  defp layer("lib/" <> file) do
    name =
      file |> String.trim_trailing(".ex") |> String.replace_prefix("py_port/", "./") |> then(&("/" <> &1))

    name = String.replace_prefix(name, "/./", "")

    Enum.find_value(@layers, fn {layer, files, _may} ->
      if Enum.any?(files, &(&1 == name or (String.ends_with?(&1, "/") and String.starts_with?(name, &1)))),
        do: layer
    end)
  end

  test "each file has a layer, and uses its own layer and those below" do
    may = for {layer, _files, may} <- @layers, into: %{}, do: {layer, [layer | may]}
    uses = uses()
    assert for({file, _used} <- uses, layer(file) == nil, do: file) == []

    wrong = for {file, used} <- uses, one <- used, layer(one) not in may[layer(file)], do: "#{file} -> #{one}"
    assert wrong == []
  end

  test "no cycle has more than three modules" do
    graph = :digraph.new()
    uses = uses()
    for {file, _used} <- uses, do: :digraph.add_vertex(graph, file)
    for {file, used} <- uses, one <- used, do: :digraph.add_edge(graph, file, one)
    assert graph |> :digraph_utils.strong_components() |> Enum.filter(&(length(&1) > 3)) == []
  end

  @parts ~w(startup requests cancellation ownership health stderr shutdown)

  test "each part of a server's state is read and written by the module of its name" do
    assert Enum.sort(@parts) == PyPort.Server.State |> struct_keys() |> Enum.sort()

    wrong =
      for path <- ["lib/py_port/server.ex" | Path.wildcard("lib/py_port/server/*.ex")],
          Path.basename(path) != "state.ex",
          part <- @parts -- [Path.basename(path, ".ex")],
          line <- path |> File.read!() |> code(),
          line =~ ~r/\bstate\.#{part}\b|\b#{part}: (%\{|#{part}\b|part\b)/,
          do: {path, line}

    assert wrong == []
  end

  defp struct_keys(module) do
    for {name, _default} <- module |> struct() |> Map.from_struct(),
        File.exists?("lib/py_port/server/#{name}.ex"),
        do: "#{name}"
  end

  defp code(source), do: source |> String.split("\n") |> Enum.reject(&(&1 =~ ~r/^\s*(#|@)/))

  # Modules without a test of their own: they are data, or the tests of the module that uses them meet each line.
  @tested_by %{
    "py_port/admission" => "py_port/connection",
    "py_port/application" => "py_port/pool",
    "py_port/bytes" => "py_port",
    "py_port/callback" => "py_port/callbacks",
    "py_port/code" => "py_port/sigils",
    "py_port/deadline" => "py_port/request/timeout",
    "py_port/locator" => "py_port/pool",
    "py_port/ownership" => "py_port/object",
    "py_port/view" => "py_port/tensor",
    "py_port/reply" => "py_port/wire",
    "py_port/object/inspect" => "py_port/object",
    "py_port/pool/default" => "py_port/pool",
    "py_port/pool/events" => "py_port/telemetry",
    "py_port/pool/manager" => "py_port/pool",
    "py_port/pool/slot" => "py_port/pool",
    "py_port/pool/state" => "py_port/pool",
    "py_port/pool/waiter" => "py_port/pool",
    "py_port/server/events" => "py_port/telemetry",
    "py_port/server/launch" => "py_port/server/startup",
    "py_port/server/ownership" => "py_port/object",
    "py_port/server/requests" => "py_port/callbacks/into_the_beam",
    "py_port/server/stacks" => "py_port/server/health",
    "py_port/server/state" => "layers",
    "py_port/server/stderr" => "py_port/stderr_file",
    "py_port/server/traffic" => "py_port/server",
    "py_port/status/table" => "py_port/status",
    "py_port/stream/relay" => "py_port/stream",
    "py_port/wire/skip" => "py_port/wire",
    "py_port/wire/unknown" => "py_port/wire"
  }

  test "a module's test has its path, or stands in the directory of its path" do
    modules =
      for path <- Path.wildcard("lib/**/*.ex"),
          layer(path) != :env,
          not (path =~ "mix/tasks"),
          do: module(path)

    tests = for path <- Path.wildcard("test/**/*_test.exs"), do: test_of(path)
    own = for module <- modules, Enum.any?(tests, &(&1 == module or Path.dirname(&1) == module)), do: module

    assert modules -- own == Enum.sort(Map.keys(@tested_by))
    assert Enum.reject(Map.values(@tested_by), &(&1 in own or &1 in tests)) == []

    # A test right under test/ is of the project and of no module.
    strays =
      for test <- tests,
          String.starts_with?(test, "py_port/"),
          not String.starts_with?(test, "py_port/env"),
          test not in modules and Path.dirname(test) not in modules,
          do: test

    assert strays == []
  end

  defp module(path), do: path |> Path.relative_to("lib") |> String.trim_trailing(".ex")
  defp test_of(path), do: path |> Path.relative_to("test") |> String.trim_trailing("_test.exs")
end
