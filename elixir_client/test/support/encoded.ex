# Structs with implementations of PyPort.Encoder: it is consolidated before tests are compiled.
defmodule PyPort.Test.Encoded do
  defmodule All do
    @derive PyPort.Encoder
    defstruct [:a, :b]
  end

  defmodule Only do
    @derive {PyPort.Encoder, only: [:a]}
    defstruct [:a, :secret]
  end

  defmodule Except do
    @derive {PyPort.Encoder, except: [:secret]}
    defstruct [:a, :b, :secret]
  end

  defmodule Own do
    defstruct [:value]
  end

  defmodule Same do
    defstruct [:value]
  end

  defmodule Plain do
    defstruct [:value]
  end

  defmodule Raises do
    defstruct []
  end

  defimpl PyPort.Encoder, for: Raises do
    def encode(_struct), do: raise("no encoding")
  end

  defimpl PyPort.Encoder, for: Own do
    def encode(%{value: value}), do: {:own, value}
  end

  defimpl PyPort.Encoder, for: Same do
    def encode(same), do: %{same | value: same.value + 1}
  end
end
