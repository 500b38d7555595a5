defmodule PyPort.Env.HintsTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.Hints

  # What uv and loaders really print, cut.
  for {said, advice} <- [
        {"error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided. To update the lockfile, run `uv lock`.",
         "mix py_port.lock"},
        {"  × No solution found when resolving dependencies:\n  ╰─▶ Because a==1 depends on b<2 and you require b>=2, your\n      requirements are unsatisfiable.",
         "cannot stand together"},
        {"  ╰─▶ Because nosuch was not found in the package registry and your\n      project depends on nosuch",
         "check its spelling"},
        {"  ╰─▶ Because nosuch was not found in the package\n      registry and your project depends on nosuch",
         "check its spelling"},
        {"hint: Packages were unavailable because the network was disabled.", "This build is offline"},
        {"Caused by: dns error: failed to lookup address information", "cannot be reached"},
        {"Caused by: invalid peer certificate: UnknownIssuer", "native_tls: true"},
        {"failed to write: No space left on device (os error 28)", "disk is full"},
        {"error: No interpreter found for Python >=3.20 in managed installations or search path",
         "No Python that fits"},
        {"  × Failed to parse: `pyproject.toml`\n  TOML parse error at line 2", "cannot be read"},
        {"error: command 'gcc' failed: No such file or directory", "had to be compiled"}
      ] do
    test "of uv's #{inspect(String.slice(said, 0, 60))}" do
      assert Hints.uv(unquote(said)) =~ unquote(advice)
    end
  end

  for {said, advice} <- [
        {"python: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by python)",
         "glibc 2.38 or newer"},
        {"python: error while loading shared libraries: libffi.so.8: cannot open shared object file",
         "library libffi.so.8 is missing"},
        {"Error loading shared library libgcc_s.so.1: No such file or directory (needed by x)",
         "so:libgcc_s.so.1"},
        {"sh: 1: exec: /env/bin/python: Exec format error", "another kind of machine"},
        {"sh: 1: exec: /env/bin/python: not found", "another libc"},
        {"the package erlang-py: install port-server, or erlang-py", "pip install erlang-py"},
        {"unknown option -P", "older than Python 3.11"}
      ] do
    test "of a Python's #{inspect(String.slice(said, 0, 60))}" do
      assert Hints.python([unquote(said)]) =~ unquote(advice)
    end
  end

  test "there is none for what it does not know" do
    assert Hints.uv("all is well") == nil
    assert Hints.python([]) == nil
  end
end
