defmodule PyPort.Env.Platform do
  # The system that binaries run on: operating system, machine, libc and its version.
  @moduledoc false

  @type libc :: {:glibc | :musl, version :: String.t()} | :unknown
  @type t :: %{os: String.t(), machine: String.t(), libc: libc()}

  @doc "This system; asked once per VM."
  @spec here() :: t()
  def here do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      {_family, os} = :os.type()
      here = %{os: to_string(os), machine: machine(), libc: libc(os)}
      :persistent_term.put(__MODULE__, here)
      here
    end
  end

  @doc "The machine of the BEAM: a 64-bit kernel may run a 32-bit one."
  @spec machine() :: String.t()
  def machine, do: architecture() |> String.split("-") |> hd()

  # Named after the C library that the BEAM was compiled for: x86_64-pc-linux-gnu, x86_64-alpine-linux-musl.
  defp architecture, do: to_string(:erlang.system_info(:system_architecture))

  defp libc(:linux), do: if(architecture() =~ "musl", do: {:musl, ""}, else: {:glibc, glibc_version()})
  defp libc(_other), do: :unknown

  defp glibc_version do
    with getconf when is_binary(getconf) <- System.find_executable("getconf"),
         {"glibc " <> version, 0} <- System.cmd(getconf, ["GNU_LIBC_VERSION"], stderr_to_stdout: true) do
      String.trim(version)
    else
      _unknown -> ""
    end
  end

  @doc "Names the kinds of binaries that run here: `linux-x86_64-glibc`."
  @spec kind() :: String.t()
  def kind do
    %{os: os, machine: machine, libc: libc} = here()
    Enum.join([os, machine] ++ if(libc == :unknown, do: [], else: [elem(libc, 0)]), "-")
  end

  @doc "A dotted version as numbers, for comparison."
  @spec numbers(String.t()) :: [non_neg_integer()]
  def numbers(version),
    do: for(part <- String.split(version, "."), {number, _rest} <- [Integer.parse(part)], do: number)

  @doc "`glibc 2.36`."
  @spec words(libc()) :: String.t()
  def words({kind, version}), do: String.trim("#{kind} #{version}")
  def words(:unknown), do: "an unknown libc"
end
