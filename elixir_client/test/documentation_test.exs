defmodule PyPort.DocumentationTest do
  # What `h` shows in IEx, and ExDoc prints.
  use ExUnit.Case, async: true

  {:ok, modules} = :application.get_key(:py_port, :modules)
  # Those of the tests themselves, and implementations of protocols, have no page.
  @modules Enum.reject(
             modules,
             &(inspect(&1) =~ ~r/^(PyPort\.Test\.|Inspect\.|PyPort\.Encoder\.|Nx\b|Explorer\b)/)
           )

  @public_modules ~w(
    :py_port Mix.Tasks.Compile.PyPort Mix.Tasks.PyPort.Add Mix.Tasks.PyPort.Debug Mix.Tasks.PyPort.Doctor
    Mix.Tasks.PyPort.Lock Mix.Tasks.PyPort.Python Mix.Tasks.PyPort.Remove Mix.Tasks.PyPort.Run
    Mix.Tasks.PyPort.Sync Mix.Tasks.PyPort.Test Mix.Tasks.PyPort.Top PyPort PyPort.Batcher PyPort.Bytes
    PyPort.Code PyPort.Encoder PyPort.Env PyPort.Error PyPort.Interactive PyPort.Module PyPort.Object
    PyPort.Pool PyPort.Release PyPort.Server PyPort.Session PyPort.Sigils PyPort.Status PyPort.Table
    PyPort.Telemetry PyPort.Tensor
  )

  defp docs(module) do
    {:docs_v1, _line, _language, _format, module_doc, _meta, docs} = Code.fetch_docs(module)
    {module_doc, docs}
  end

  defp public,
    do: for(module <- @modules, {doc, docs} = docs(module), doc not in [:hidden, :none], do: {module, docs})

  defp functions(docs) do
    for {{kind, name, arity}, _line, _signature, doc, _meta} <- docs,
        kind in [:function, :macro],
        doc != :hidden,
        do: {{kind, name, arity}, doc}
  end

  test "every module says what it is, or that it is internal" do
    for module <- @modules, function_exported?(module, :module_info, 0) do
      {doc, _docs} = docs(module)
      assert {module, doc} != {module, :none}
    end
  end

  test "the modules that are for people are these" do
    # A new one is added here when it has been read as a page of the documentation.
    assert Enum.sort(for {module, _docs} <- public(), do: inspect(module)) == @public_modules
  end

  test "every public function has a text" do
    for {module, docs} <- public(), {{_kind, name, arity}, doc} <- functions(docs) do
      assert {module, name, arity, is_map(doc)} == {module, name, arity, true}
    end
  end

  test "every public function has a spec" do
    for {module, docs} <- public(), {{:function, name, arity}, _doc} <- functions(docs) do
      {:ok, specs} = Code.Typespec.fetch_specs(module)
      assert {module, name, arity, List.keymember?(specs, {name, arity}, 0)} == {module, name, arity, true}
    end
  end

  test "every public function has an example" do
    without =
      for {module, docs} <- public(),
          {{_kind, name, arity}, %{"en" => text}} <- functions(docs),
          # That a function is another under a second name is said in words.
          not (text =~ ~r/\n\n    \S|^The same as `/),
          do: {module, name, arity}

    assert without == []
  end

  test "every option of a request, a server, a pool and an environment stands in a text" do
    assert_options(PyPort.Server, &PyPort.Options.server!/1, [])
    # Those of its servers stand there.
    assert_options(PyPort.Pool, &PyPort.Options.pool!/1, known(&PyPort.Options.server!/1) -- ["name"])
    assert_options(PyPort, &PyPort.Options.request!/1, [])
    assert_options(PyPort.Batcher, &PyPort.Options.batcher!/1, [])
    assert_options(PyPort, &PyPort.Options.batched!/1, [])
    assert_options(PyPort.Env, &PyPort.Env.Config.new!(:default, &1, "."), [])
  end

  defp assert_options(module, check, elsewhere) do
    {%{"en" => text}, _docs} = docs(module)
    assert {module, Enum.reject(known(check) -- elsewhere, &(text =~ "`:#{&1}`"))} == {module, []}
  end

  # As the error of an unknown one names them.
  defp known(check) do
    error = assert_raise ArgumentError, fn -> check.(no_such_option: 1) end
    [_before, names] = String.split(error.message, "Known options: ")
    names |> String.split(", ") |> Enum.map(&String.trim_leading(&1, ":"))
  end
end
