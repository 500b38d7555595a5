defmodule PyPort.Test.Beam do
  # Another BEAM, with this library, that can be killed and stopped: a process of the operating system, told what to do line
  # by line.
  import ExUnit.Assertions

  @source ~S'''
  {:ok, _} = Application.ensure_all_started(:py_port)

  loop = fn loop ->
    case IO.gets("") do
      line when is_binary(line) ->
        {value, _} = line |> String.trim() |> Base.decode64!() |> Code.eval_string()
        IO.puts("= " <> Base.encode64(:erlang.term_to_binary(value)))
        loop.(loop)

      _end ->
        System.halt(0)
    end
  end

  loop.(loop)
  '''

  @doc "Starts one; `{port, os_pid}`. It ends with the calling process, if it has not before."
  def start do
    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :stderr_to_stdout,
        :exit_status,
        {:line, 65_536},
        args: ["-pa", to_string(:code.lib_dir(:py_port)) <> "/ebin", "-e", @source],
        env: [{~c"ELIXIR_ERL_OPTIONS", ~c"+fnu"}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    assert ask({port, os_pid}, "1 + 1") == 2
    {port, os_pid}
  end

  @doc "The value of Elixir code, evaluated there."
  def ask({port, _os_pid} = beam, code, patience \\ 60_000) do
    Port.command(port, Base.encode64(code) <> "\n")
    await(beam, patience)
  end

  @doc "Has it evaluated, without waiting."
  def tell({port, _os_pid}, code), do: Port.command(port, Base.encode64(code) <> "\n")

  @doc "The value of what was asked for first."
  def await({port, _os_pid}, patience \\ 60_000), do: await_value(port, patience, [])

  defp await_value(port, patience, said) do
    receive do
      {^port, {:data, {:eol, "= " <> value}}} ->
        value |> Base.decode64!() |> :erlang.binary_to_term()

      {^port, {:data, {_eol, line}}} ->
        await_value(port, patience, [line | said])

      {^port, {:exit_status, status}} ->
        flunk("the other BEAM ended with status #{status}: #{said |> Enum.reverse() |> Enum.join("\n")}")
    after
      patience ->
        flunk("the other BEAM did not answer; it said: #{said |> Enum.reverse() |> Enum.join("\n")}")
    end
  end

  @doc "Every process that descends from it."
  def descendants(os_pid) do
    parents =
      for entry <- File.ls!("/proc"),
          entry =~ ~r/^\d+$/,
          {:ok, stat} <- [File.read("/proc/#{entry}/stat")],
          [state, parent | _] = stat |> String.split(") ") |> List.last() |> String.split(),
          state not in ["Z", "X"],
          do: {String.to_integer(entry), String.to_integer(parent)}

    below(parents, [os_pid], [])
  end

  defp below(_parents, [], found), do: found

  defp below(parents, of, found) do
    children = for {pid, parent} <- parents, parent in of, do: pid
    below(parents, children, children ++ found)
  end
end
