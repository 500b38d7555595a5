defmodule PyPort.Uv.DownloadTest do
  # A package index of our own, on this machine; sets variables of the environment.
  use ExUnit.Case, async: false

  alias PyPort.Env.{Config, Platform}
  alias PyPort.Uv
  alias PyPort.Uv.Download

  @moduletag :tmp_dir

  @page """
  <html><body>
  <a href="../../packages/uv-0.8.1-py3-none-macosx_11_0_arm64.whl#sha256=AA">uv-0.8.1-py3-none-macosx_11_0_arm64.whl</a><br />
  <a href="https://files.test/a/uv-0.8.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl#sha256=bb" data-requires-python="&gt;=3.8">uv-0.8.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl</a>
  <a href="/files/uv-0.8.1-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl#sha256=cc">uv-0.8.1-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl</a>
  <a href="uv-0.8.1-py3-none-musllinux_1_1_x86_64.whl#sha256=dd">uv-0.8.1-py3-none-musllinux_1_1_x86_64.whl</a>
  <a href="uv-0.8.10-py3-none-musllinux_1_1_x86_64.whl#sha256=ee">uv-0.8.10-py3-none-musllinux_1_1_x86_64.whl</a>
  <a href="uv-0.7.0-py3-none-musllinux_1_1_x86_64.whl">uv-0.7.0-py3-none-musllinux_1_1_x86_64.whl</a>
  </body></html>
  """
  @index "https://index.test/simple/uv/"

  for {os, machine, libc, url, hash} <- [
        {"linux", "x86_64", {:glibc, "2.36"},
         "https://files.test/a/uv-0.8.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "bb"},
        {"linux", "x86_64", {:musl, "1.2.5"},
         "https://index.test/simple/uv/uv-0.8.1-py3-none-musllinux_1_1_x86_64.whl", "dd"},
        {"linux", "aarch64", {:musl, "1.2.5"},
         "https://index.test/files/uv-0.8.1-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
         "cc"},
        {"darwin", "aarch64", :unknown, "https://index.test/packages/uv-0.8.1-py3-none-macosx_11_0_arm64.whl",
         "aa"}
      ] do
    test "the wheel for #{os} #{machine} #{inspect(libc)}" do
      platform = %{os: unquote(os), machine: unquote(machine), libc: unquote(Macro.escape(libc))}
      assert Download.choose(@page, @index, "0.8.1", platform) == {:ok, unquote(url), unquote(hash)}
    end
  end

  test "a link to another host is not told the credentials of the index" do
    index = "https://user:secret@index.test/simple/uv/"
    glibc = %{os: "linux", machine: "x86_64", libc: {:glibc, "2.36"}}
    assert {:ok, "https://files.test/" <> _path, "bb"} = Download.choose(@page, index, "0.8.1", glibc)
    musl = %{glibc | libc: {:musl, "1.2.5"}}

    assert {:ok, "https://user:secret@index.test/" <> _path, "dd"} =
             Download.choose(@page, index, "0.8.1", musl)
  end

  test "a version or platform that is not there, and a link without hash, are told apart" do
    musl = %{os: "linux", machine: "x86_64", libc: {:musl, "1.2.5"}}
    assert {:error, words} = Download.choose(@page, @index, "0.9.0", musl)
    assert words =~ "no uv 0.9.0 for x86_64 and musl"
    assert {:error, words} = Download.choose(@page, @index, "0.7.0", musl)
    assert words =~ "no SHA-256"
  end

  defp wheel(program) do
    {:ok, {_name, wheel}} =
      :zip.create(~c"uv.whl", [{~c"uv-0.8.1.data/scripts/uv", program}, {~c"uv/__init__.py", ""}], [:memory])

    wheel
  end

  @program "#!/bin/sh\necho 'uv 0.8.1 (from the index)'\n"

  # Serves a page with one wheel, of a hash as it should be or not.
  defp serve(wheel, hash) do
    %{libc: libc, machine: machine} = Platform.here()
    tag = if match?({:musl, _}, libc), do: "musllinux_1_1", else: "manylinux_2_17"
    name = "uv-0.8.1-py3-none-#{tag}_#{machine}.whl"
    page = ~s(<a href="../../files/#{name}#sha256=#{hash}">#{name}</a>)

    {:ok, listener} =
      :gen_tcp.listen(0, [:binary, packet: :http_bin, active: false, reuseaddr: true, ip: {127, 0, 0, 1}])

    {:ok, port} = :inet.port(listener)
    host = "http://127.0.0.1:#{port}"

    files = %{
      "/simple/uv/" => page,
      "/files/#{name}" => wheel,
      "/old/uv/" => {:moved, "/private/uv/"},
      "/older/uv/" => {:moved, host <> "/private/uv/"},
      "/private/uv/" => {:private, String.replace(page, "../..", host <> "/private")},
      "/private/files/#{name}" => {:private, wheel}
    }

    server = spawn_link(fn -> accept(listener, files) end)
    :ok = :gen_tcp.controlling_process(listener, server)
    host <> "/simple"
  end

  defp accept(listener, files) do
    {:ok, socket} = :gen_tcp.accept(listener)
    {:ok, {:http_request, :GET, {:abs_path, path}, _version}} = :gen_tcp.recv(socket, 0, 5_000)
    {status, more, body} = answer(files[path], credentials(socket, nil))

    :gen_tcp.send(socket, [
      "HTTP/1.1 ",
      status,
      "\r\n#{more}content-length: #{byte_size(body)}\r\nconnection: close\r\n\r\n",
      body
    ])

    :gen_tcp.close(socket)
    accept(listener, files)
  end

  defp answer(nil, _credentials), do: {"404 Not Found", "", ""}
  defp answer({:moved, path}, _credentials), do: {"301 Moved Permanently", "location: #{path}\r\n", ""}
  defp answer({:private, _body}, nil), do: {"401 Unauthorized", "", ""}
  defp answer({:private, body}, "Basic dXNlcjpzZWNyZXQ="), do: {"200 OK", "", body}
  defp answer(body, _credentials), do: {"200 OK", "", body}

  defp credentials(socket, known) do
    case :gen_tcp.recv(socket, 0, 5_000) do
      {:ok, :http_eoh} -> known
      {:ok, {:http_header, _, :Authorization, _, basic}} -> credentials(socket, basic)
      {:ok, _header} -> credentials(socket, known)
    end
  end

  defp sha256(data), do: :crypto.hash(:sha256, data) |> Base.encode16(case: :lower)

  setup %{tmp_dir: dir} do
    kept = for name <- ~w(PATH http_proxy HTTP_PROXY no_proxy NO_PROXY), do: {name, System.get_env(name)}

    on_exit(fn ->
      for {name, value} <- kept, do: if(value, do: System.put_env(name, value), else: System.delete_env(name))
    end)

    for name <- ~w(http_proxy HTTP_PROXY), do: System.delete_env(name)
    # No uv there.
    System.put_env("PATH", dir <> ":/usr/bin:/bin")

    config =
      Config.new!(
        :default,
        [pyproject_toml: "", uv_version: "0.8.1", cache_dir: Path.join(dir, "cache")],
        dir
      )

    {:ok, config: config}
  end

  defp find(config, index),
    do: Uv.find(%{config | index: [index]}, fn data -> send(self(), {:said, data}) end)

  test "a uv that nobody installed is fetched once, verified, and kept", %{config: config} do
    wheel = wheel(@program)
    assert {:ok, %Uv{version: "0.8.1", path: path}} = find(config, serve(wheel, sha256(wheel)))
    assert String.starts_with?(path, config.cache_dir)
    assert_received {:said, words}
    assert IO.iodata_to_binary(words) =~ "fetching uv 0.8.1"
    # Nobody listens there: from the cache.
    assert {:ok, %Uv{path: ^path}} = find(config, "http://127.0.0.1:1/simple")
  end

  test "what has another hash is not used, and not kept", %{config: config} do
    wheel = wheel(@program)
    assert {:error, words} = find(config, serve(wheel, sha256("another")))
    assert words =~ "SHA-256" and words =~ sha256(wheel)
    refute File.exists?(Download.path(config.cache_dir, "0.8.1"))
  end

  test "a wheel without a program in it is said to be one", %{config: config} do
    {:ok, {_name, wheel}} = :zip.create(~c"uv.whl", [{~c"README", "nothing"}], [:memory])
    assert {:error, words} = find(config, serve(wheel, sha256(wheel)))
    assert words =~ "no program uv in it"
  end

  test "an index that is not there, or not one, is said to be", %{config: config} do
    assert {:error, words} = find(config, "http://127.0.0.1:1/simple")
    assert words =~ "cannot be reached" and words =~ "HTTPS_PROXY"
    wheel = wheel(@program)
    assert {:error, words} = find(config, serve(wheel, sha256(wheel)) <> "/other")
    assert words =~ "status 404"
  end

  test "a private index may lead elsewhere on its host: the password goes along", %{config: config} do
    wheel = wheel(@program)
    index = wheel |> serve(sha256(wheel)) |> String.replace("http://", "http://user:secret@")

    for old <- ["/old", "/older"] do
      assert {:ok, %Uv{version: "0.8.1", path: path}} = find(config, String.replace(index, "/simple", old))
      File.rm!(path)
    end
  end

  test "passwords in the address of an index are not shown", %{config: config} do
    assert {:error, words} = find(config, "http://user:secret@127.0.0.1:1/simple")
    refute words =~ "secret"
    assert_received {:said, said}
    refute IO.iodata_to_binary(said) =~ "secret"
  end
end
