defmodule PyPort.Options do
  # Which options there are, what they default to, and what is said about a wrong one. Pure.
  @moduledoc false

  @request [
    server: PyPort.Default,
    timeout: 5_000,
    binary_as: :str,
    stdout: nil,
    stderr: nil
  ]

  @server [
    name: nil,
    python: nil,
    cd: nil,
    env: [],
    init_code: nil,
    init_timeout: 60_000,
    logger: true,
    heartbeat_interval: 1_000,
    shutdown_grace: 1_000,
    max_frame_bytes: 1_073_741_824,
    max_queued_bytes: 67_108_864,
    max_pending: 1_024
  ]

  @type request :: %{
          server: GenServer.server(),
          timeout: timeout(),
          binary_as: :str | :bytes,
          stdout: IO.device() | nil,
          stderr: IO.device() | nil
        }

  @spec request!(keyword()) :: map()
  # The common case, and the one that must cost nothing.
  def request!([]), do: unquote(Macro.escape(Map.new(@request)))
  def request!(options), do: validate!(options, @request, "PyPort.eval/3 and PyPort.call/4")

  @spec server!(keyword()) :: map()
  def server!(options), do: validate!(options, @server, "PyPort.Server")

  defp validate!(options, known, whose) do
    unless Keyword.keyword?(options) do
      raise ArgumentError, "options must be a keyword list, got: #{inspect(options)}"
    end

    Enum.reduce(options, Map.new(known), fn {name, value}, valid ->
      unless Map.has_key?(valid, name), do: raise(ArgumentError, unknown(name, Keyword.keys(known), whose))

      unless valid?(name, value) do
        raise ArgumentError, "option #{inspect(name)} must be #{expected(name)}, got: #{inspect(value)}"
      end

      %{valid | name => value}
    end)
  end

  defp unknown(name, known, whose) do
    similar = Enum.max_by(known, &String.jaro_distance(to_string(&1), to_string(name)))
    near? = String.jaro_distance(to_string(similar), to_string(name)) > 0.8
    hint = if near?, do: " Did you mean #{inspect(similar)}?", else: ""

    "unknown option #{inspect(name)} for #{whose}.#{hint} " <>
      "Known options: #{Enum.map_join(known, ", ", &inspect/1)}"
  end

  defp valid?(name, value) when name in [:timeout, :init_timeout],
    do: value == :infinity or (is_integer(value) and value >= 0)

  defp valid?(name, value) when name in [:heartbeat_interval, :max_pending, :max_queued_bytes],
    do: is_integer(value) and value > 0

  # {packet, 4} has four bytes for a length, and the BEAM reads no more than 2 GiB at once.
  defp valid?(:max_frame_bytes, value), do: is_integer(value) and value > 0 and value < 2_147_483_648
  defp valid?(:shutdown_grace, value), do: is_integer(value) and value >= 0
  defp valid?(:binary_as, value), do: value in [:str, :bytes]
  defp valid?(:logger, value), do: is_boolean(value)
  defp valid?(name, value) when name in [:python, :cd], do: is_nil(value) or is_binary(value)
  defp valid?(:init_code, value), do: is_nil(value) or is_binary(value) or is_struct(value, PyPort.Code)

  defp valid?(:env, value) do
    is_list(value) and
      Enum.all?(value, fn
        {name, value} -> is_binary(name) and (is_binary(value) or value in [nil, false])
        _other -> false
      end)
  end

  defp valid?(name, value) when name in [:stdout, :stderr], do: is_pid(value) or is_atom(value)

  # What can be a server shows when it is used.
  defp valid?(_name, _value), do: true

  defp expected(name) when name in [:timeout, :init_timeout], do: "milliseconds (0 or more) or :infinity"
  defp expected(name) when name in [:heartbeat_interval], do: "milliseconds (1 or more)"
  defp expected(:shutdown_grace), do: "milliseconds (0 or more)"
  defp expected(:max_pending), do: "a number of requests (1 or more)"
  defp expected(:max_queued_bytes), do: "a number of bytes (1 or more)"
  defp expected(:max_frame_bytes), do: "a number of bytes below 2 GiB"
  defp expected(name) when name in [:stdout, :stderr], do: "an IO device: a pid or a registered name"
  defp expected(:binary_as), do: ":str or :bytes"
  defp expected(:logger), do: "true or false"
  defp expected(:python), do: "the path of a Python interpreter, or its name on the PATH"
  defp expected(:cd), do: "a directory"
  defp expected(:init_code), do: "Python source: a string, or a ~PY or ~P sigil"
  defp expected(:env), do: ~s(a list such as [{"NAME", "value"}, {"UNSET_ME", nil}])
end
