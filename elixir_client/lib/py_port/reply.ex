defmodule PyPort.Reply do
  # A reply of Python, or an item of a stream, as the outcome of a request.
  @moduledoc false

  alias PyPort.{Error, Libraries, Wire}

  # `:objects` for a value with handles inside, and `:failed` for an error with one, which have no owner yet; `:unread` for a
  # frame that cannot be read and may hold handles.
  @type outcome ::
          {:ok, term()}
          | {:error, Error.t()}
          | {:objects, term(), [integer()]}
          | {:failed, Error.t(), [pos_integer()]}
          | {:unread, Error.t()}

  @spec outcome(binary()) :: outcome()
  def outcome(frame) do
    case Wire.scalar(frame) do
      {:ok, _value} = outcome -> outcome
      :other -> outcome_of(Wire.decode(frame))
    end
  end

  defp outcome_of({:ok, {:error, _id, description, ids}}) when is_list(ids),
    do: {:failed, Error.from_wire(description), ids}

  defp outcome_of({:ok, {_ok_or_yield, _id, value, ids}}) when is_list(ids) do
    case Libraries.load(value, ids) do
      {:ok, value} -> {:objects, value, ids}
      {:error, error} -> {:unread, error}
    end
  end

  defp outcome_of({:ok, {:error, _id, description}}), do: {:error, Error.from_wire(description)}
  defp outcome_of({:ok, {_ok_or_yield, _id, value}}), do: {:ok, value}

  defp outcome_of({:ok, other}),
    do: {:error, Error.new(:protocol, "an answer of an unknown shape: #{inspect(other)}")}

  defp outcome_of({:error, why}), do: {:unread, Error.new(:decode, why, begun: true)}
end
