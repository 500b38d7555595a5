defmodule PyPort.Allow do
  # The functions that Python may call by name: the option `:allow` of a server. Makes no atoms of what Python sends, but for
  # modules of which there is a file.
  @moduledoc false

  @type t :: :all | [module() | {module(), atom()} | {module(), atom(), arity()}]

  # The function of that name, if it may be called.
  @spec find(t(), module :: binary(), function :: binary(), arity()) :: {:ok, fun()} | {:refused, String.t()}
  def find(allow, module, function, arity) do
    with {:ok, found} <- existing_module(module, allow),
         {:ok, name} <- existing_atom(function),
         true <- allowed?(allow, found, name, arity) do
      {:ok, Function.capture(found, name, arity)}
    else
      _no ->
        {:refused, refusal("#{String.replace_prefix(module, "Elixir.", "")}.#{function}/#{arity}", allow)}
    end
  end

  defp refusal(name, :all), do: "#{name} does not exist"

  defp refusal(name, allow) do
    "#{name} may not be called from Python. The server's option :allow lists the functions that may, such as " <>
      "allow: [{Enum, :map, 2}, MyApp.Api], or is :all; this server's is: #{inspect(allow)}"
  end

  # "Enum" for Enum, "lists" for :lists.
  defp existing_module(<<first, _::binary>> = name, allow) when first in ?A..?Z do
    name = if String.starts_with?(name, "Elixir."), do: name, else: "Elixir." <> name
    existing_module(name, existing_atom(name), allow)
  end

  defp existing_module(name, allow), do: existing_module(name, existing_atom(name), allow)

  # A module that is not loaded yet: there are as many of these atoms as there are files.
  defp existing_module(name, :error, :all) do
    if :code.where_is_file(~c"#{name}.beam") != :non_existing,
      do: with({:module, module} <- Code.ensure_loaded(String.to_atom(name)), do: {:ok, module})
  end

  defp existing_module(_name, {:ok, module}, :all) do
    _ = Code.ensure_loaded(module)
    {:ok, module}
  end

  defp existing_module(_name, found, _allow), do: found

  defp existing_atom(name) do
    {:ok, String.to_existing_atom(name)}
  rescue
    ArgumentError -> :error
  end

  defp allowed?(:all, module, function, arity), do: function_exported?(module, function, arity)

  defp allowed?(allow, module, function, arity) do
    Enum.any?(allow, fn
      {^module, ^function, ^arity} -> true
      {^module, ^function} -> true
      ^module -> true
      _other -> false
    end)
  end
end
