defmodule PyPort.Env.Check do
  # Whether an environment that was built somewhere can run here: what its record says, against what is found. Each
  # finding has its own words, and they end with the way out. Looks at files; runs nothing.
  @moduledoc false

  alias PyPort.Env.{Advice, Elf, Inventory, Platform, Specifier, Stamp}

  @type finding :: {:refuse | :warn, atom(), String.t()}

  @doc "What is wrong, the worst first; `[]` for an environment that can run here."
  @spec findings(Stamp.t(), Path.t(), Platform.t()) :: [finding()]
  def findings(stamp, dir, here) do
    # Where it was built for another kind of system, every further finding would only confuse.
    case kind(stamp, here) do
      [] -> interpreter(stamp, dir) ++ glibc(stamp, here) ++ packages(stamp, dir) ++ libraries(stamp)
      found -> found
    end
  end

  defp kind(%{os: os} = stamp, %{os: other}) when os != other,
    do: [refuse(:os, stamp, "was built on #{os}, and this is #{other}. Build it on a system like this one")]

  defp kind(%{machine: machine} = stamp, %{machine: other}) when machine != other do
    [
      refuse(:machine, stamp, """
      was built for #{machine}, and this machine is #{other}. Build it on a machine like this one, or for it \
      (docker build --platform linux/#{docker(other)})\
      """)
    ]
  end

  defp kind(%{libc: {kind, _}} = stamp, %{libc: {other, _} = libc}) when kind != other do
    [
      refuse(:libc, stamp, """
      was built for #{Platform.words(stamp.libc)}, and this system has #{Platform.words(libc)}: binaries for one do not \
      run on the other. Build and run on the same base image (both Debian, or both Alpine)\
      """)
    ]
  end

  defp kind(_stamp, _here), do: []

  defp docker("x86_64"), do: "amd64"
  defp docker("aarch64"), do: "arm64"
  defp docker(machine), do: machine

  @doc "Whether the interpreter is there: cheap, so asked at every start."
  @spec interpreter(Stamp.t(), Path.t()) :: [finding()]
  def interpreter(stamp, dir) do
    cond do
      File.exists?(Path.join(dir, stamp.python.executable)) ->
        []

      not File.dir?(dir) ->
        [refuse(:gone, stamp, "is gone: #{dir} does not exist. Build it again: mix py_port.sync --force")]

      stamp.kind == :venv ->
        [
          refuse(:python_removed, stamp, """
          needs Python #{stamp.python.version} at #{stamp.python.base_executable}, which was removed or is not on this \
          machine. Install that Python there; or build again with one that is here (mix py_port.sync --force); or let \
          the release carry its Python (see carry_python: of PyPort.Release)\
          """)
        ]

      true ->
        [
          refuse(
            :incomplete,
            stamp,
            "is not whole: #{Path.join(dir, stamp.python.executable)} is missing. Copy or build it again"
          )
        ]
    end
  end

  # What the binaries name counts, not what they were built on: most wheels are for much older systems.
  defp glibc(%{libc: {:glibc, built}, needs: %{glibc: needed}} = stamp, %{libc: {:glibc, here}})
       when is_binary(needed) and here != "" do
    if Elf.numbers(needed) > Elf.numbers(here) do
      [
        refuse(:glibc, stamp, """
        needs glibc #{needed} (it was built on #{built}), and this system has #{here}. Build it on this system, or on \
        one that is no newer (the same base image)\
        """)
      ]
    else
      []
    end
  end

  defp glibc(_stamp, _here), do: []

  defp packages(stamp, dir) do
    purelib = Path.join(dir, stamp.python.packages_dir)

    changed =
      for %{name: name, version: version, record: record} <- stamp.packages,
          Inventory.record(Path.join(purelib, "#{name}-#{version}.dist-info")) != record,
          do: "#{name} #{version}"

    if changed == [] do
      []
    else
      [
        refuse(:packages, stamp, """
        is not as it was built: #{Enum.join(changed, ", ")} changed or removed. Build it again \
        (mix py_port.sync --force), or copy it again and whole\
        """)
      ]
    end
  end

  # Only a warning: who needs the library may never be imported, and loaders find files in places of their own.
  defp libraries(stamp) do
    for {soname, package} <- stamp.needs.libraries, Platform.find_library(soname) == nil do
      {:warn, :library,
       "The Python package #{package} needs the shared library #{soname}, which was not found on this system. If importing " <>
         "it fails, install the system's package with it (Debian: apt-file search #{soname}; Alpine: apk search so:#{soname})"}
    end
  end

  @doc "What is wrong with an interpreter that has said its version (`Python 3.12.4`)."
  @spec answers(Stamp.t(), String.t()) :: [finding()]
  def answers(stamp, said) do
    with [_, version] <- Regex.run(~r/^Python (\S+)/, said),
         {:error, words} <- running(stamp, version) do
      [{:refuse, :python_replaced, words}]
    else
      _fine_or_unknown -> []
    end
  end

  @doc "What is wrong with an interpreter that cannot even do that."
  @spec fails(Stamp.t(), String.t()) :: [finding()]
  def fails(stamp, said) do
    advice = Advice.python(said) || "Build it again: mix py_port.sync --force"

    words =
      "has a Python that does not start (#{stamp.python.base_executable}): #{String.trim(said)}. #{advice}"

    [refuse(:python_broken, stamp, String.trim_trailing(words, "."))]
  end

  @doc "Whether the Python that answers is the one that was meant, by what its `hello` says."
  @spec running(Stamp.t(), String.t()) :: :ok | {:error, String.t()}
  def running(stamp, version) do
    cond do
      not Specifier.satisfied?(version, stamp.requires_python) ->
        {:error,
         "Python #{version} runs, and the project of the environment #{inspect(stamp.name)} has requires-python " <>
           "#{inspect(stamp.requires_python)}: it was built with #{stamp.python.version}, and #{stamp.python.base_executable} has been " <>
           "replaced since. Build it again: mix py_port.sync --force"}

      minor(version) != minor(stamp.python.version) ->
        {:error,
         "Python #{version} runs, and the packages of the environment #{inspect(stamp.name)} are for Python " <>
           "#{minor(stamp.python.version)}: #{stamp.python.base_executable} has been replaced since. Build it again: " <>
           "mix py_port.sync --force"}

      true ->
        :ok
    end
  end

  defp minor(version), do: version |> String.split(".") |> Enum.take(2) |> Enum.join(".")

  defp refuse(tag, stamp, words),
    do: {:refuse, tag, "The Python environment #{inspect(stamp.name)} #{words}."}
end
