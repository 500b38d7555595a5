defmodule Mix.Tasks.Compile.PyPortCollector do
  # Compiles c_src/collector.c of this library into priv/native, where there are a C compiler and the headers of Erlang.
  @moduledoc false
  use Mix.Task.Compiler

  @source "c_src/collector.c"

  @impl true
  def run(_args) do
    target = "priv/native/#{PyPort.Collector.name()}.so"
    include = Path.join(:code.root_dir(), "usr/include")
    compiler = System.find_executable(System.get_env("CC") || "cc")

    if compiler && File.exists?(Path.join(include, "erl_nif.h")) && Mix.Utils.stale?([@source], [target]),
      do: compile(compiler, include, target),
      else: {:noop, []}
  end

  @impl true
  def clean, do: File.rm_rf!("priv/native")

  # A system on which it fails does without.
  defp compile(compiler, include, target) do
    undefined = if match?({:unix, :darwin}, :os.type()), do: ["-undefined", "dynamic_lookup"], else: []
    part = "#{target}.#{System.pid()}"
    args = ["-O2", "-fPIC", "-shared", "-I", include, "-o", part, @source] ++ undefined
    File.mkdir_p(Path.dirname(target))

    with {_said, 0} <- System.cmd(compiler, args, stderr_to_stdout: true),
         :ok <- File.rename(part, target) do
      # The module has been loaded without it.
      :code.purge(PyPort.Collector)
      :code.delete(PyPort.Collector)
    else
      why ->
        Mix.shell().info("PyPort: objects are not collected, for #{@source} was not compiled: #{said(why)}")
    end

    {:ok, []}
  end

  defp said({:error, reason}), do: :file.format_error(reason)
  defp said({said, _status}), do: "\n" <> said
end
