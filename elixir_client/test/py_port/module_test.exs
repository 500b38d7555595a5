defmodule PyPort.ModuleTest do
  # use PyPort.Module: functions of a Python module as functions of Elixir.
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  @moduletag :tmp_dir

  doctest PyPort.Module

  defmodule PyMath do
    use PyPort.Module, module: "math"
  end

  defmodule PyStatistics do
    use PyPort.Module, module: "statistics", except: [:variance], timeout: 20_000
  end

  defmodule PyJson do
    use PyPort.Module, module: "json", only: ["dumps", "loads"]
  end

  test "functions of the standard library, written in C and in Python" do
    assert PyMath.sqrt(9.0) == {:ok, 3.0}
    assert PyMath.gcd!(12, 18, 27) == 3
    assert PyMath.log!(8, 2) == 3.0
    assert PyStatistics.mean!([1, 2, 6]) == 3
    assert PyStatistics.quantiles!([1, 2, 3], n: 2) == [2.0]
    assert {:error, %PyPort.Error{type: "statistics.StatisticsError"}} = PyStatistics.mean([])
    assert PyJson.dumps!(%{"b" => 1, "a" => [nil]}, sort_keys: true) == ~s({"a": [null], "b": 1})
    assert PyJson.loads!("[1]") == [1]
    assert_raise PyPort.Error, fn -> PyMath.sqrt!(-1.0) end
  end

  test "the chosen ones only" do
    refute function_exported?(PyStatistics, :variance, 1)

    assert Enum.sort(for {name, 1} <- PyJson.__info__(:functions), do: name) == [
             :dumps,
             :dumps!,
             :loads,
             :loads!
           ]
  end

  defp module(dir, source, options \\ []) do
    File.mkdir_p!(dir)
    name = "mine_#{System.unique_integer([:positive])}"
    File.write!(Path.join(dir, name <> ".py"), source)
    elixir = Module.concat(__MODULE__, Macro.camelize(name))

    # Python finds it by PYTHONPATH, which tests of other modules do not touch.
    {:ok, server} = PyPort.Server.start_link(init_code: "import sys; sys.path.insert(0, #{inspect(dir)})")

    options = Keyword.merge([module: name, server: server, python: python(dir)], options)

    code =
      quote do
        defmodule unquote(elixir) do
          use PyPort.Module, unquote(Keyword.replace(options, :server, :"server_#{name}"))
        end
      end

    Process.register(server, :"server_#{name}")
    debug_info = Code.get_compiler_option(:debug_info)
    # Specs are read of it.
    Code.put_compiler_option(:debug_info, true)
    [{^elixir, binary}] = Code.compile_quoted(code, "mine.ex")
    Code.put_compiler_option(:debug_info, debug_info)
    {elixir, binary, Path.join(dir, name <> ".py")}
  end

  # A Python that has the directory on its path.
  defp python(dir) do
    python = System.get_env("PYPORT_PYTHON") || System.find_executable("python3")
    path = Path.join(dir, "python")
    File.write!(path, "#!/bin/sh\nPYTHONPATH=#{dir}:$PYTHONPATH exec #{python} \"$@\"\n")
    File.chmod!(path, 0o755)
    path
  end

  @source """
  from typing import Optional
  from math import sqrt
  print("at import")
  limit = 3

  class Thing: pass

  def mean(values: list[float], digits: int = 2, *, base: Optional[float] = None) -> float:
      \"\"\"The mean of the values.\"\"\"
      return round(sum(values) / len(values), digits) + (base or 0)

  def pairs(data: dict[str, tuple[int, str]]) -> list[str | None]: return [*data]
  def options(**given): return given
  def end(): return 1
  def _hidden(): return 1
  def untyped(a, b=1): return [a, b]
  async def later(n: int) -> int: return n + 1
  """

  test "a module of the application: arities, docs, specs and the file", %{tmp_dir: dir} do
    {mine, binary, file} = module(dir, @source)
    names = mine.__info__(:functions) |> Keyword.keys() |> Enum.uniq() |> Enum.sort()
    plain = [:later, :mean, :options, :pairs, :untyped]
    assert names == Enum.sort(plain ++ Enum.map(plain, &:"#{&1}!"))

    assert mine.mean!([1, 2]) == 1.5
    assert mine.mean!([1, 2.25], 1) == 1.6
    assert mine.mean!([1, 2], base: 1) == 2.5
    assert mine.mean!([1, 2], 0, base: 1) == 3
    assert mine.mean!(values: [2], digits: 1) == 2
    assert mine.untyped!([{:a, 1}]) |> is_list()
    assert mine.options!(a: 1) == %{"a" => 1}
    assert mine.later!(1) == 2
    assert mine.__info__(:attributes)[:external_resource] == [file]

    {:ok, specs} = Code.Typespec.fetch_specs(binary)

    spec = fn name, arity ->
      {_key, [spec]} = Enum.find(specs, &(elem(&1, 0) == {name, arity}))
      name |> Code.Typespec.spec_to_quoted(spec) |> Macro.to_string() |> String.replace(~r/\s+/, " ")
    end

    assert spec.(:mean!, 2) == "mean!([number()], integer() | keyword()) :: float()"
    assert spec.(:pairs, 1) =~ "pairs(%{optional(String.t()) => {integer(), String.t()}} | keyword()) :: "
    assert spec.(:pairs, 1) =~ "{:ok, [String.t() | nil]} | {:error, PyPort.Error.t()}"
  end

  test "without its Python a warning says so, and calls work at run time", %{tmp_dir: dir} do
    warned =
      capture_io(:stderr, fn ->
        {mine, _binary, _file} = module(dir, @source, python: "/no/such/python")
        send(self(), {:module, mine})
      end)

    assert warned =~ "are looked up at run time, because there is no Python /no/such/python"
    assert_received {:module, mine}
    assert mine.mean([1, 2]) == {:ok, 1.5}
    assert mine.mean!([1, 2], digits: 0) == 2
    assert_raise PyPort.Error, fn -> mine.no_such!() end
  end

  test "a module that cannot be imported, and wrong options, are named", %{tmp_dir: _dir} do
    warned =
      capture_io(:stderr, fn ->
        Code.eval_string(
          "defmodule PyPort.ModuleTest.None do use PyPort.Module, module: \"no_such_module_x\" end"
        )
      end)

    assert warned =~ "no_such_module_x are looked up at run time, because"
    assert_raise ArgumentError, ~r/needs module:/, fn -> PyPort.Module.name!([]) end

    assert_raise ArgumentError, ~r/unknown option :no_such/, fn ->
      PyPort.Module.request(module: "math", no_such: 1)
    end
  end
end
