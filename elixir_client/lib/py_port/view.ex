defmodule PyPort.View do
  # The data of a tensor or a table on its way to Python, which looks at it where it is.
  @moduledoc false

  @enforce_keys [:data]
  defstruct [:data]
end
