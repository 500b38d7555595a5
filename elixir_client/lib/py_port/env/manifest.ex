defmodule PyPort.Env.Manifest do
  # The record of a finished environment: its directory, what it was built from, and the system it was built for.
  # A rename makes it the last step of a build, so a directory that no manifest names is not an environment.
  @moduledoc false

  # Raised when the meaning of a field changes; a manifest of an earlier format counts as none.
  @format 2

  @type package :: %{name: String.t(), version: String.t(), record: String.t()}
  @typedoc "See `PyPort.Env.Build`, which makes it. `glibc` is what its packages need, `libc` what it was built on."
  @type t :: %{
          :name => atom(),
          :kind => :venv | :carried,
          :dir => Path.t(),
          :python => %{atom() => String.t()},
          :packages => [package()],
          :libc => PyPort.Env.Platform.libc(),
          :glibc => String.t() | nil,
          atom() => term()
        }

  @spec path(base :: Path.t(), name :: atom()) :: Path.t()
  def path(base, name), do: Path.join(base, "#{name}.term")

  @doc "The names of the environments in a directory."
  @spec names(Path.t()) :: [atom()]
  def names(base) do
    paths = base |> Path.join("*.term") |> Path.wildcard()
    Enum.map(paths, &(&1 |> Path.basename(".term") |> String.to_atom()))
  end

  @doc "Reads the manifest of an environment and gives it with the environment's directory."
  @spec read(Path.t(), atom()) :: {:ok, t(), dir :: Path.t()} | :error
  def read(base, name) do
    case base |> path(name) |> String.to_charlist() |> :file.consult() do
      {:ok, [%{format: @format, name: ^name} = manifest]} -> {:ok, manifest, Path.join(base, manifest.dir)}
      _none_or_damaged -> :error
    end
  end

  @doc "Swaps an environment in: from now on its name means the directory of this manifest."
  @spec write!(Path.t(), t()) :: :ok
  def write!(base, %{name: name} = manifest) do
    text = :io_lib.format("%% coding: utf-8~n~tp.~n", [Map.put(manifest, :format, @format)])
    replace!(path(base, name), :unicode.characters_to_binary(text))
  end

  @doc "Writes a file so that readers see the old content or the new one; an unchanged file is not touched."
  @spec replace!(Path.t(), binary()) :: :ok
  def replace!(path, content) do
    aside = "#{path}.#{System.pid()}-#{System.unique_integer([:positive])}"

    unless File.read(path) == {:ok, content} do
      File.mkdir_p!(Path.dirname(path))
      File.write!(aside, content)
      File.rename!(aside, path)
    end

    :ok
  end
end
