defmodule PyPort.Test.Markdown do
  # The fenced blocks of the documentation, and those of them that this suite runs. tests/markdown.py reads
  # them the same way; tests/house/test_documents.py holds every block to be run or to say why not.

  # A comment right above a fence says who else runs the block, or why nobody does.
  @fence ~r/^(<!-- (?:not run: |run by )(?:(?!-->).)*-->\n)?```(\S*)\n(.*?)^```$/ms

  @doc "The blocks in one of `languages` that nobody else runs: `{language, line, code}`, in order."
  def blocks(path, languages) do
    text = File.read!(path)

    for [{at, _}, {_, note_size}, {language_at, language_size}, {code_at, code_size}] <-
          Regex.scan(@fence, text, return: :index),
        note_size == 0,
        language = binary_part(text, language_at, language_size),
        language in languages do
      true = at >= 0
      {language, line(text, code_at), binary_part(text, code_at, code_size)}
    end
  end

  @doc """
  Runs Elixir blocks one after the other, each with what those before it have bound, as a reader does who follows
  them in IEx. An error names its place in the document.
  """
  def run(blocks, path, env) do
    Enum.reduce(blocks, {[], env}, fn {"elixir", line, code}, {bindings, env} ->
      quoted = Code.string_to_quoted!(code, file: path, line: line)
      {_value, bindings, env} = Code.eval_quoted_with_env(quoted, bindings, %{env | file: path, line: line})
      {bindings, env}
    end)
  end

  defp line(text, at), do: text |> binary_part(0, at) |> String.split("\n") |> length()
end
