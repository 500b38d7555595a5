defmodule PyPort.Env.Stamp do
  # The record of a whole environment: written last, by a rename, so that what has none is not built. It names the
  # directory that the environment lives in, and says what it was built from and for. Reading and writing of the file
  # only; what it means is PyPort.Env.Check's.
  @moduledoc false

  # Raised when what stands in the record changes its meaning: an older one then counts as none.
  @format 1

  @type t :: %{atom() => term()}

  @doc "Where the record of an environment stands."
  @spec path(Path.t(), atom()) :: Path.t()
  def path(base, name), do: Path.join(base, "#{name}.term")

  @doc "Reads the record; `:error` where there is none, or none that this version understands."
  @spec read(Path.t(), atom()) :: {:ok, t()} | :error
  def read(base, name) do
    case base |> path(name) |> String.to_charlist() |> :file.consult() do
      {:ok, [%{format: @format, name: ^name} = stamp]} -> {:ok, stamp}
      _other -> :error
    end
  end

  @doc "Writes the record: from now on the environment exists."
  @spec write!(Path.t(), t()) :: :ok
  def write!(base, %{name: name} = stamp) do
    text = :io_lib.format("%% coding: utf-8~n~tp.~n", [Map.put(stamp, :format, @format)])
    replace!(path(base, name), :unicode.characters_to_binary(text))
  end

  @doc "Writes a file so that readers see the old one or the new one, and never a part; and only if it changes."
  @spec replace!(Path.t(), iodata()) :: :ok
  def replace!(path, content) do
    content = IO.iodata_to_binary(content)

    unless File.read(path) == {:ok, content} do
      File.mkdir_p!(Path.dirname(path))
      aside = "#{path}.#{System.pid()}-#{System.unique_integer([:positive])}"

      try do
        File.write!(aside, content)
        File.rename!(aside, path)
      after
        File.rm(aside)
      end
    end

    :ok
  end
end
