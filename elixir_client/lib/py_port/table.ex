defmodule PyPort.Table do
  @moduledoc """
  A table, as a data frame of Python or of Explorer: one Arrow IPC stream.

  With `tables: :arrow`, an option of requests, servers and pools, a table in a value comes as one of these. Its data is a part
  of the frame that Python sent, and is not copied:

      {:ok, %PyPort.Table{format: :arrow_stream, data: data}} =
        PyPort.eval("import pandas as pd; pd.DataFrame({'a': [1, 2]})", %{}, tables: :arrow)

  Among the values of a request it is an Arrow C stream, which data frame libraries import: `polars.DataFrame(table)`,
  `pyarrow.table(table)`, `pandas.DataFrame.from_arrow(table)`, `duckdb.from_arrow(table)`.

  An `Explorer.DataFrame` among the values goes the same way by itself, and `tables: :explorer` gives one in place of this
  struct.
  """

  @enforce_keys [:format, :data]
  defstruct [:format, :data]

  @type t :: %__MODULE__{format: :arrow_stream, data: binary()}
end
