defmodule PyPort.Env.Check do
  # Whether an environment can run here: its manifest against this system. Each answer is a sentence for people that
  # ends with what to do.
  @moduledoc false

  alias PyPort.Env.{Hints, Inventory, Manifest, Platform}

  @again "Build it again: mix py_port.sync --force"

  @doc "The first thing that is wrong, in words; nil for an environment that can run here."
  @spec problem(Manifest.t(), Path.t(), Platform.t()) :: String.t() | nil
  def problem(manifest, dir, here) do
    # On another kind of system every further finding would only confuse.
    system(manifest, here) || interpreter(manifest, dir) || glibc(manifest, here) || packages(manifest, dir) ||
      start(manifest, dir)
  end

  defp system(%{os: os} = manifest, %{os: other}) when os != other,
    do: words(manifest, "was built on #{os}, and this is #{other}. Build it on a system like this one")

  defp system(%{machine: machine} = manifest, %{machine: other}) when machine != other do
    platform = %{"x86_64" => "amd64", "aarch64" => "arm64"}[other] || other
    here = "this machine is #{other}. Build it on a machine like this one, or for it"
    words(manifest, "was built for #{machine}, and #{here} (docker build --platform linux/#{platform})")
  end

  defp system(%{libc: {kind, _}} = manifest, %{libc: {other, _} = libc}) when kind != other do
    built = "was built for #{Platform.words(manifest.libc)}, and this system has #{Platform.words(libc)}"
    words(manifest, "#{built}. Build and run it on the same base image (both Debian, or both Alpine)")
  end

  defp system(_manifest, _here), do: nil

  @doc "Whether the interpreter exists: cheap, so asked at every start of a server."
  @spec interpreter(Manifest.t(), Path.t()) :: String.t() | nil
  def interpreter(%{python: python} = manifest, dir) do
    cond do
      File.exists?(Path.join(dir, python.executable)) ->
        nil

      not File.dir?(dir) ->
        words(manifest, "is gone: #{dir} does not exist. #{@again}")

      manifest.kind == :venv ->
        words(manifest, """
        needs Python #{python.version} at #{python.base_executable}, which was removed or is not on this machine. \
        Install that Python there; or build again with one that is here (mix py_port.sync --force); or let the release \
        carry its Python (see carry_python: of PyPort.Release)\
        """)

      true ->
        missing = Path.join(dir, python.executable)
        words(manifest, "is incomplete: #{missing} is missing. Copy or build it again")
    end
  end

  # The glibc that the binaries need counts, not the one they were built on: most wheels are for older systems.
  defp glibc(%{glibc: needed} = manifest, %{libc: {:glibc, here}}) when is_binary(needed) and here != "" do
    if Platform.numbers(needed) > Platform.numbers(here) do
      built =
        "needs glibc #{needed} (it was built on #{Platform.words(manifest.libc)}), and this system has #{here}"

      words(manifest, "#{built}. Build it on this system, or on one that is no newer (the same base image)")
    end
  end

  defp glibc(_manifest, _here), do: nil

  defp packages(manifest, dir) do
    changed =
      for %{name: name, version: version, record: record} <- manifest.packages,
          info = Path.join([dir, manifest.python.packages_dir, "#{name}-#{version}.dist-info"]),
          Inventory.record(info) != record,
          do: "#{name} #{version}"

    if changed != [],
      do: words(manifest, "is not as it was built: #{Enum.join(changed, ", ")} changed or removed. #{@again}")
  end

  # The interpreter prints its version before it loads a module: 2 ms.
  defp start(%{python: python} = manifest, dir) do
    case System.cmd(Path.join(dir, python.executable), ["-V"], stderr_to_stdout: true) do
      {"Python " <> version, 0} -> version(manifest, String.trim(version))
      {said, _status} -> broken(manifest, said)
    end
  rescue
    # A file that is there and "does not exist" names a loader that does not.
    error in ErlangError -> broken(manifest, Exception.message(error))
  end

  defp broken(%{python: python} = manifest, said) do
    start = "has a Python that does not start (#{python.base_executable}): #{String.trim(said)}"
    words(manifest, "#{start}. #{String.trim_trailing(Hints.python(said) || @again, ".")}")
  end

  @doc "Whether a Python of this version finds the packages of the environment."
  @spec version(Manifest.t(), String.t()) :: String.t() | nil
  def version(%{name: name, python: python}, version) do
    if minor(version) != minor(python.version),
      do:
        "Python #{version} runs, and the packages of the environment #{inspect(name)} are for Python " <>
          "#{minor(python.version)}: #{python.base_executable} has been replaced since. #{@again}"
  end

  defp minor(version), do: version |> String.split(".") |> Enum.take(2) |> Enum.join(".")

  defp words(manifest, words), do: "The Python environment #{inspect(manifest.name)} #{words}."
end
