defmodule PyPort.Test.Markdown do
  # The fenced blocks of the documentation, and those of them that this suite runs. tests/markdown.py reads
  # them the same way; tests/house/test_documents.py holds every block to be run or to say why not.

  @doc "The blocks in one of `languages` that nobody else runs: `{language, line, code}`, in order."
  def blocks(path, languages) do
    text = File.read!(path)

    for [{at, _}, {_, note_size}, {language_at, language_size}, {code_at, code_size}] <-
          Regex.scan(fence(), text, return: :index),
        note_size == 0,
        language = binary_part(text, language_at, language_size),
        language in languages do
      true = at >= 0
      {language, line(text, code_at), binary_part(text, code_at, code_size)}
    end
    |> Enum.reject(&installs?/1)
  end

  # The first cell of a notebook: here all of what it installs is there.
  defp installs?({"elixir", _line, "Mix.install(" <> _cell}), do: true
  defp installs?(_block), do: false

  @doc """
  Runs Elixir blocks one after the other, each with what those before it have bound, as a reader does who follows
  them in IEx. An error names its place in the document. What belongs into a configuration is read as one.
  """
  def run(blocks, path) do
    Enum.reduce(blocks, {[], Code.env_for_eval([])}, fn {"elixir", line, code}, {bindings, env} ->
      if code =~ ~r/\A(# config\/[^\n]*\n)?(import Config|config )/ do
        configured!(Config.Reader.eval!(path, "import Config\n" <> code))
        {bindings, env}
      else
        quoted = Code.string_to_quoted!(code, file: path, line: line)
        {_value, bindings, env} = Code.eval_quoted_with_env(quoted, bindings, %{env | file: path, line: line})
        {bindings, env}
      end
    end)
  end

  # Environments are not built here, but their options have to be some that there are.
  defp configured!(py_port: [uv_init: options]) do
    defaults = if options[:environments], do: [], else: [pyproject_toml: "[project]"]
    [_ | _] = PyPort.Env.Config.all!(Keyword.merge(defaults, options), "/app")
  end

  defp configured!(py_port: [_option]), do: :ok

  defp line(text, at), do: text |> binary_part(0, at) |> String.split("\n") |> length()

  # A comment right above a fence says what else runs the block, or why it is not run.
  defp fence do
    ~r/^(<!-- (?:not run: |run by )(?:(?!-->).)*-->\n)?```(\S*)\n(.*?)^```$/ms
  end
end
