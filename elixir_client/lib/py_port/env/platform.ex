defmodule PyPort.Env.Platform do
  # What this machine is, as far as binaries care: operating system, machine, libc and its version, shared libraries.
  @moduledoc false

  alias PyPort.Env.Elf

  @type libc :: {:glibc | :musl, String.t()} | :unknown
  @type t :: %{os: String.t(), machine: String.t(), libc: libc()}

  @doc "What runs here; asked once, since it does not change under a running VM."
  @spec here() :: t()
  def here do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      {_family, name} = :os.type()
      here = %{os: to_string(name), machine: machine(), libc: libc(name)}
      :persistent_term.put(__MODULE__, here)
      here
    end
  end

  @doc "The machine as `uname -m` calls it, of the BEAM that runs: on some systems 32 bits on a 64-bit kernel."
  @spec machine() :: String.t()
  def machine do
    case :erlang.system_info(:system_architecture) |> to_string() |> String.split("-") |> hd() do
      "amd64" -> "x86_64"
      "arm64" -> "aarch64"
      "arm" <> _version -> "armv7l"
      machine -> machine
    end
  end

  # Which libc is "the" libc of a system that has both (gcompat on Alpine, musl-tools on Debian) the BEAM's own loader says.
  defp libc(:linux) do
    with {:ok, %Elf{interpreter: loader}} when is_binary(loader) <- Elf.read(beam()) do
      if loader =~ "ld-musl", do: {:musl, musl_version(loader)}, else: {:glibc, glibc_version()}
    else
      _unreadable -> if musl_name?(), do: {:musl, ""}, else: {:glibc, glibc_version()}
    end
  end

  defp libc(_other), do: :unknown

  defp beam do
    Path.join([:code.root_dir(), "erts-#{:erlang.system_info(:version)}", "bin", "beam.smp"])
  end

  defp musl_name?, do: to_string(:erlang.system_info(:system_architecture)) =~ "musl"

  # musl's loader says its version when it is called with nothing to load.
  defp musl_version(loader) do
    {said, _status} = System.cmd(loader, [], stderr_to_stdout: true)
    first_version(said, ~r/Version (\d+(?:\.\d+)+)/)
  rescue
    _error -> ""
  end

  # Even slim images have getconf; where it is missing, glibc's own banner stands in the library.
  defp glibc_version do
    with getconf when is_binary(getconf) <- System.find_executable("getconf"),
         {said, 0} <- System.cmd(getconf, ["GNU_LIBC_VERSION"], stderr_to_stdout: true),
         version when version != "" <- first_version(said, ~r/glibc (\d+(?:\.\d+)+)/) do
      version
    else
      _other -> glibc_banner()
    end
  end

  defp glibc_banner do
    with path when is_binary(path) <- find_library("libc.so.6"),
         {:ok, library} <- File.read(path) do
      first_version(library, ~r/GNU C Library[^\n]*version (\d+(?:\.\d+)+)/)
    else
      _other -> ""
    end
  end

  defp first_version(text, pattern) do
    case Regex.run(pattern, text, capture: :all_but_first) do
      [version] -> version
      nil -> ""
    end
  end

  @doc "Where the dynamic loader would find a shared library, or `nil`."
  @spec find_library(String.t()) :: Path.t() | nil
  def find_library(soname) do
    Enum.find_value(library_dirs(), fn dir ->
      path = Path.join(dir, soname)
      if File.exists?(path), do: path
    end)
  end

  # The loader's own order, near enough: what counts is whether the file is anywhere.
  defp library_dirs do
    named = (System.get_env("LD_LIBRARY_PATH") || "") |> String.split(":", trim: true)
    configured = for file <- conf_files(), line <- lines(file), String.starts_with?(line, "/"), do: line
    triplet = machine() <> "-linux-gnu"
    fixed = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"]
    Enum.uniq(named ++ configured ++ ["/lib/#{triplet}", "/usr/lib/#{triplet}"] ++ fixed)
  end

  defp conf_files,
    do:
      ["/etc/ld.so.conf" | Path.wildcard("/etc/ld.so.conf.d/*.conf")] ++ Path.wildcard("/etc/ld-musl-*.path")

  defp lines(file) do
    case File.read(file) do
      {:ok, text} -> text |> String.split(["\n", ":"]) |> Enum.map(&String.trim/1)
      {:error, _reason} -> []
    end
  end

  @doc "In words: `glibc 2.36`."
  @spec words(libc()) :: String.t()
  def words({kind, ""}), do: to_string(kind)
  def words({kind, version}), do: "#{kind} #{version}"
  def words(:unknown), do: "an unknown libc"
end
