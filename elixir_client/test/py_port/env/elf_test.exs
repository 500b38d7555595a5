defmodule PyPort.Env.ElfTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.{Elf, Platform}

  @moduletag :tmp_dir

  if match?({:unix, :linux}, :os.type()) do
    test "reads a real program" do
      assert {:ok, elf} = Elf.read("/bin/sh")
      assert elf.machine == Platform.machine()
      assert elf.interpreter =~ ~r{/ld-(linux|musl)}
      assert Enum.any?(elf.needed, &(&1 =~ ~r/^libc\./))
    end

    test "agrees with the system about libc" do
      assert %{os: "linux", libc: {kind, version}} = Platform.here()
      {:ok, %Elf{interpreter: loader, glibc: glibc}} = Elf.read("/bin/sh")
      assert kind == if(loader =~ "musl", do: :musl, else: :glibc)
      assert version =~ ~r/^\d+\.\d+/
      if kind == :glibc, do: assert(Elf.numbers(glibc) <= Elf.numbers(version))
    end

    test "finds the libraries that programs of this system are linked with" do
      {:ok, %Elf{needed: needed}} = Elf.read("/bin/sh")
      for soname <- needed, do: assert(Platform.find_library(soname), soname)
      assert Platform.find_library("libnosuch.so.7") == nil
    end

    test "every prefix of a program is an error or read, and never a crash", %{tmp_dir: dir} do
      whole = File.read!("/bin/sh")
      path = Path.join(dir, "cut")

      for size <- [0, 3, 4, 16, 63, 64, 65, 100, 500, 1_000, 5_000, 20_000, byte_size(whole) - 1] do
        File.write!(path, binary_part(whole, 0, min(size, byte_size(whole))))
        assert match?({:ok, %Elf{}}, Elf.read(path)) or Elf.read(path) == :error
      end
    end
  end

  test "what is no ELF file is no error of the program", %{tmp_dir: dir} do
    path = Path.join(dir, "text")
    File.write!(path, "#!/bin/sh\n")
    assert Elf.read(path) == :error
    assert Elf.read(Path.join(dir, "nothing")) == :error
    assert Elf.read(dir) == :error
  end
end
