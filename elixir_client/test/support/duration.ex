unless Code.ensure_loaded?(Duration) do
  defmodule Duration do
    @moduledoc false
    # The struct of Elixir 1.17, for the tests on an older one.
    defstruct year: 0, month: 0, week: 0, day: 0, hour: 0, minute: 0, second: 0, microsecond: {0, 0}
  end
end
