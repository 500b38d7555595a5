defmodule PyPort.Session do
  @moduledoc """
  Python names that stay from one request to the next.

  `PyPort.open_session/1` makes one; requests with `session:` share its names. It lives on one server, and ends
  with the process that opened it, with that server, or by `PyPort.close_session/1`, whichever comes first.
  """

  @enforce_keys [:server, :name]
  defstruct [:server, :name]

  @typedoc "`server` is the process that owns the Python in which the session lives."
  @type t :: %__MODULE__{server: pid(), name: String.t()}

  defimpl Inspect do
    def inspect(%{name: name, server: server}, _options), do: "#PyPort.Session<#{name} #{inspect(server)}>"
  end
end
