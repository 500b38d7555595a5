defmodule PyPort.Env.UvTest do
  # Changes PATH.
  use ExUnit.Case, async: false

  alias PyPort.Env.{Config, Uv}
  alias PyPort.Test.{FakeUv, Processes}

  @moduletag :tmp_dir

  setup %{tmp_dir: dir} do
    path = System.get_env("PATH")
    on_exit(fn -> System.put_env("PATH", path) end)

    {:ok,
     dir: dir, config: Config.new!(:default, [pyproject_toml: "", cache_dir: Path.join(dir, "cache")], dir)}
  end

  defp silent(_data), do: :ok

  defp only_on_path(dir), do: System.put_env("PATH", dir)

  test "the one that is named is the one that is used", %{dir: dir, config: config} do
    uv = FakeUv.write(Path.join(dir, "here"))
    assert {:ok, %Uv{path: ^uv, version: "0.9.9"}} = Uv.find(%{config | uv: uv}, &silent/1)
    assert {:ok, %Uv{path: ^uv}} = Uv.find(%{config | uv: "here/uv"}, &silent/1)
    assert {:error, words} = Uv.find(%{config | uv: "/no/such/uv"}, &silent/1)
    assert words =~ "/no/such/uv"
    old = FakeUv.write(Path.join(dir, "old"), %{"--version" => "echo uv 0.4.30"})
    assert {:error, words} = Uv.find(%{config | uv: old}, &silent/1)
    assert words =~ "uv 0.4.30" and words =~ "0.5.0 or newer"
  end

  test "the one on the PATH is used where none is named", %{dir: dir, config: config} do
    uv = FakeUv.write(Path.join(dir, "bin"))
    only_on_path(Path.join(dir, "bin") <> ":/usr/bin:/bin")
    assert {:ok, %Uv{path: ^uv}} = Uv.find(config, &silent/1)
  end

  test "without any, how to get one is said", %{dir: dir, config: config} do
    only_on_path(dir)
    assert {:error, words} = Uv.find(config, &silent/1)
    assert words =~ "pip install uv" and words =~ "uv_version:"
  end

  test "a shim with no uv behind it, and one that is too old, count as none", %{dir: dir, config: config} do
    only_on_path(dir <> ":/usr/bin:/bin")
    FakeUv.write(dir, %{"--version" => "echo 'command not found' >&2; exit 127"})
    assert {:error, words} = Uv.find(config, &silent/1)
    assert words =~ "command not found" and words =~ "pip install uv"
    FakeUv.write(dir, %{"--version" => "echo uv 0.4.30"})
    assert {:error, words} = Uv.find(config, &silent/1)
    assert words =~ "uv 0.4.30" and words =~ "0.5.0 or newer"
  end

  # The one on the PATH fetches another: here it writes one where it was told to.
  @install ~S"""
  while [ "$1" != --target ]; do shift; done
  mkdir -p "$2/bin"; printf '#!/bin/sh\necho uv %s\n' "${3#uv==}" >"$2/bin/uv"; chmod +x "$2/bin/uv"
  """

  test "uv_version is fetched once by the uv on the PATH, into the cache", %{dir: dir, config: config} do
    FakeUv.write(Path.join(dir, "bin"), %{"pip" => @install})
    only_on_path(Path.join(dir, "bin") <> ":/usr/bin:/bin")
    config = %{config | uv_version: "0.8.1", index: ["https://a.test"]}
    assert {:ok, %Uv{path: path, version: "0.8.1"}} = Uv.find(config, &silent/1)
    assert String.starts_with?(path, config.cache_dir)
    assert {:ok, %Uv{path: ^path}} = Uv.look(config)
    assert {:ok, %Uv{path: ^path}} = Uv.find(%{config | offline: true}, &silent/1)
    assert [fetched] = for("pip" <> _ = call <- FakeUv.calls(Path.join(dir, "bin")), do: call)
    assert fetched =~ "uv==0.8.1" and fetched =~ "--default-index https://a.test"
    # The same version on the PATH needs no other.
    assert {:ok, %Uv{version: "0.9.9"}} = Uv.find(%{config | uv_version: "0.9.9"}, &silent/1)
  end

  test "without a uv on the PATH pip fetches it, and its words are given where it cannot", %{
    dir: dir,
    config: config
  } do
    python = Path.join(dir, "python3")
    File.write!(python, "#!/bin/sh\n#{@install}")
    File.chmod!(python, 0o755)
    only_on_path(dir)
    for tool <- ~w(mkdir chmod), do: File.ln_s!(System.find_executable("/bin/" <> tool), Path.join(dir, tool))
    config = %{config | uv_version: "0.8.1"}
    assert {:ok, %Uv{version: "0.8.1"}} = Uv.find(config, &silent/1)
    File.write!(python, "#!/bin/sh\necho No module named pip; exit 1\n")
    assert {:error, words} = Uv.find(%{config | uv_version: "0.8.2"}, &silent/1)
    assert words =~ "No module named pip" and words =~ "Install uv"
    File.rm!(python)
    assert {:error, words} = Uv.find(%{config | uv_version: "0.8.2"}, &silent/1)
    assert words =~ "there is no python3"
    assert Path.wildcard(Path.join(config.cache_dir, "uv-bin/0.8.2*")) == []
  end

  test "offline fetches no uv", %{dir: dir, config: config} do
    only_on_path(dir)
    assert {:error, words} = Uv.find(%{config | uv_version: "0.8.1", offline: true}, &silent/1)
    assert words =~ "offline: true"
  end

  test "who only looks is told of what would be fetched, and fetches nothing", %{dir: dir, config: config} do
    only_on_path(dir)
    assert Uv.look(%{config | uv_version: "0.8.1"}) == {:fetch, "0.8.1"}
    refute File.exists?(config.cache_dir)
    assert {:error, words} = Uv.look(config)
    assert words =~ "pip install uv"
  end

  test "offline: and native_tls: hold for every command, the second under both of its names", %{
    dir: dir,
    config: config
  } do
    for name <- ["UV_SYSTEM_CERTS", "UV_NATIVE_TLS"], was = System.get_env(name) do
      System.delete_env(name)
      on_exit(fn -> System.put_env(name, was) end)
    end

    uv = FakeUv.write(dir, %{"sync" => ~S(echo "$UV_OFFLINE,$UV_SYSTEM_CERTS,$UV_NATIVE_TLS")})

    said = fn options ->
      Uv.run(%Uv{path: uv, version: "0.9.9"}, Map.merge(config, Map.new(options)), ["sync"])
    end

    assert said.(native_tls: true, offline: true) == {:ok, "1,1,1\n"}
    assert said.(offline: true) == {:ok, "1,,\n"}
    assert said.([]) == {:ok, ",,\n"}
  end

  test "what it says is handed on while it works, both streams in order", %{dir: dir, config: config} do
    uv = FakeUv.write(dir, %{"sync" => "echo one; echo two >&2; sleep 0.2; echo three; exit 3"})
    test = self()
    print = fn data -> send(test, {:said, System.monotonic_time(:millisecond), data}) end

    assert {:error, "one\ntwo\nthree\n"} =
             Uv.run(%Uv{path: uv, version: "0.9.9"}, config, ["sync"], print: print)

    assert_received {:said, first, "one\n" <> _}
    last = last_said(first)
    assert last - first >= 100
  end

  defp last_said(time) do
    receive do
      {:said, later, _data} -> last_said(later)
    after
      0 -> time
    end
  end

  test "variables that would turn it to another project are taken from it", %{dir: dir, config: config} do
    # Under the last one uv would refuse the port server's own wheel, which is a file and has no hash.
    for name <- ["VIRTUAL_ENV", "UV_REQUIRE_HASHES"] do
      System.put_env(name, "1")
      on_exit(fn -> System.delete_env(name) end)
    end

    script = ~S(echo "${VIRTUAL_ENV-none} ${UV_REQUIRE_HASHES-none} $UV_PROJECT_ENVIRONMENT $UV_CACHE_DIR")
    uv = FakeUv.write(dir, %{"sync" => script})
    options = [env: [{"UV_PROJECT_ENVIRONMENT", "/mine"}]]
    assert {:ok, said} = Uv.run(%Uv{path: uv, version: "0.9.9"}, config, ["sync"], options)
    assert said == "none none /mine #{config.cache_dir}/uv-cache\n"
  end

  test "it ends with whoever has called it", %{dir: dir, config: config} do
    uv = FakeUv.write(dir, %{"sync" => "echo $$ >'#{dir}/pid'; exec sleep 60"})
    {caller, monitor} = spawn_monitor(fn -> Uv.run(%Uv{path: uv, version: "0.9.9"}, config, ["sync"], []) end)
    file = Path.join(dir, "pid")
    assert Processes.eventually(fn -> match?({:ok, <<_, _::binary>>}, File.read(file)) end)
    pid = file |> File.read!() |> String.trim()
    assert File.exists?("/proc/#{pid}")
    Process.exit(caller, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}, 5_000
    assert Processes.eventually(fn -> not alive?(pid) end)
  end

  defp alive?(pid) do
    case File.read("/proc/#{pid}/stat") do
      {:ok, stat} -> not (stat =~ ") Z ")
      {:error, _gone} -> false
    end
  end
end
