defmodule Explorer.DataFrame do
  # Stands in for the library Explorer, of which this project has no copy: the functions that PyPort calls and that the
  # example shows, with the names, the struct and the refusals of Explorer 0.12. The rows stay what Arrow made of them, and
  # what is asked of them is asked of Python.
  @moduledoc false
  defstruct [:data, :groups, :names, :dtypes]

  # The start of an Arrow IPC stream.
  @continuation <<0xFFFFFFFF::32>>

  def load_ipc_stream!(<<@continuation, _::binary>> = contents),
    do: %__MODULE__{data: {:rows, contents}, groups: [], names: [], dtypes: %{}}

  def load_ipc_stream!(contents) when is_binary(contents),
    do: raise("load_ipc_stream failed: #{inspect(%RuntimeError{message: "out-of-spec"})}")

  def dump_ipc_stream!(%__MODULE__{data: {:rows, contents}}), do: contents

  def names(frame), do: ask("pyarrow.table(frame).column_names", frame)
  def n_rows(frame), do: ask("pyarrow.table(frame).num_rows", frame)
  def to_rows(frame), do: ask("pyarrow.table(frame).to_pylist()", frame)

  defp ask(code, frame), do: PyPort.eval!("import pyarrow\n" <> code, %{frame: frame}, timeout: 60_000)
end
