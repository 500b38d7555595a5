defprotocol PyPort.Encoder do
  @moduledoc """
  The value that Python is sent for a struct.

  A struct without an implementation arrives as a `Struct` with its module, or as what the module is registered for in
  Python. With one it arrives as what `encode/1` gives, mostly a map:

      defmodule User do
        @derive {PyPort.Encoder, only: [:name, :age]}
        defstruct [:name, :age, :password_hash]
      end

      PyPort.eval!("user['name']", %{user: %User{name: "Ada"}})   #=> "Ada"

  `@derive PyPort.Encoder` sends all fields, and `except:` all but some. Structs of other libraries have an implementation
  of your own:

      defimpl PyPort.Encoder, for: Money do
        def encode(money), do: Money.to_decimal(money)
      end

  It is asked wherever the struct stands among globals and arguments, and in what functions of Elixir return, but in
  keys of maps and members of sets. It is asked on the node of the caller, also where the server lives on another.

  `PyPort.Tensor`, `PyPort.Table`, `Nx.Tensor` and `Explorer.DataFrame` have one.
  """

  @fallback_to_any true

  @doc """
  The value to send in place of the struct. It may contain structs itself.

  ## Examples

      iex> PyPort.Encoder.encode(~D[2024-02-29])
      ~D[2024-02-29]
  """
  @spec encode(t()) :: term()
  def encode(struct)
end

defimpl PyPort.Encoder, for: Any do
  defmacro __deriving__(module, struct, options) do
    fields = fields(Map.keys(struct) -- [:__struct__], options, module)

    quote do
      defimpl PyPort.Encoder, for: unquote(module) do
        def encode(struct), do: Map.take(struct, unquote(fields))
      end
    end
  end

  defp fields(all, options, module) do
    given = (is_list(options) && (options[:only] || options[:except])) || []

    case {options, given -- all} do
      {[], []} -> all
      {[only: only], []} -> only
      {[except: except], []} -> all -- except
      {_options, [_ | _] = unknown} -> refuse(module, "#{inspect(unknown)} are no fields of it")
      _other -> refuse(module, "its options are only: [...] or except: [...], got: #{inspect(options)}")
    end
  end

  defp refuse(module, why),
    do: raise(ArgumentError, "@derive PyPort.Encoder for #{inspect(module)}: #{why}")

  def encode(struct), do: struct
end
