defmodule PyPort.Env.Hints do
  # From the output of uv, or of a Python that did not start, to what a person can do about it. Pure.
  @moduledoc false

  # The first that matches is given, so the special stands before the general. A function, because OTP 28 keeps no
  # compiled pattern in an attribute.
  defp uv_rules do
    [
      {~r/needs to be updated, but `--locked`|lockfile .*(needs to be updated|is outdated)/i,
       "The lock does not match the project any more. Run `mix py_port.lock`, look at the change, and commit it."},
      {~r/No space left on device|Disk quota exceeded|os error 28\b/,
       "The disk is full: that of uv's cache (`uv cache prune`; cache_dir: moves it), of TMPDIR or of _build."},
      {~r/Read-only file system|Permission denied|os error (13|30)\b/,
       "A directory cannot be written by this user. The option cache_dir: moves the caches."},
      {~r/UnknownIssuer|invalid peer certificate|certificate verify failed|self.signed certificate/i,
       "The certificate of the index is not trusted. Behind a proxy that inspects TLS set native_tls: true, or SSL_CERT_FILE."},
      {~r/\b(401 Unauthorized|403 Forbidden|407 Proxy)/,
       "The package index, or the proxy before it, wants credentials: put them in the URL of index:, or in ~/.netrc."},
      {~r/network was disabled|network connectivity is disabled|not found in the cache|`--offline`|offline mode/i,
       "This build is offline, and something is not in uv's cache. Build once with the network, or drop offline: true."},
      {~r/dns error|failed to lookup|Connection refused|error sending request|tcp connect|unreachable|timed out|Could not connect/i,
       "The package index cannot be reached. Check the network and HTTPS_PROXY; index: names a mirror; see also offline:."},
      {~r/not found in the package registry|HTTP status client error \(404/,
       "No package of that name is on the index: check its spelling in pyproject.toml, and index: if it is a private one."},
      {~r/No interpreter found|No download found|Python downloads are|incompatible with the project's Python requirement/i,
       "No Python that fits requires-python is here. Install one, name one with python:, or unset UV_PYTHON_DOWNLOADS."},
      {~r/No solution found when resolving|requirements are unsatisfiable/,
       "These versions cannot stand together: uv says above which. Loosen one of them in pyproject.toml."},
      {~r/TOML parse error|Failed to parse: .*pyproject\.toml/,
       "The pyproject.toml cannot be read: uv says above where."},
      {~r/command '?[\w\/.-]*(gcc|cc|clang)[\w.-]*'? failed|such file or directory: '(gcc|cc)'|fatal error: .*\.h: No such/i,
       "A package without a wheel for this Python and machine had to be compiled. Install a compiler and headers (Debian: gcc " <>
         "libc6-dev python3-dev; Alpine: gcc musl-dev python3-dev), or choose a version that has a wheel."}
    ]
  end

  defp python_rules do
    [
      {~r/version [`']GLIBC_([\d.]+)' not found/,
       "It was built for glibc \\1 or newer, and this system has an older one. Build it on a base image that is no newer."},
      {~r/(?:Error loading shared library|error while loading shared libraries:|ImportError:) (lib[^\s:]+\.so[^\s:]*)/,
       "The shared library \\1 is missing here. Install its package (Debian: apt-file search \\1; Alpine: apk search so:\\1)."},
      {~r/Exec format error|cannot execute binary file/,
       "This Python was built for another kind of machine. Build the environment on a machine like this one."},
      {~r/(?:ld-musl|ld-linux)[^\n]*(?:not found|No such file)|exec: [^\n]*: not found/,
       "The loader of this Python is missing: it was built for another libc (glibc against musl). Build it on this system."},
      {~r/neither the native codec|package erlang-py|No module named 'erlang'/,
       "This Python has neither the native codec nor erlang-py, and the server needs one of them. Install one: `python3 -m " <>
         "pip install erlang-py`; or let uv build an environment (config :py_port, :uv_init)."},
      {~r/No module named 'port_server'/,
       "Install the package port-server in this Python, in the version of this library: an escript cannot carry it."},
      {~r/option:? -P/, "It is older than Python 3.11, the oldest that will do."}
    ]
  end

  @doc "Advice about the output of uv; nil where uv says all that there is to say."
  @spec uv(String.t()) :: String.t() | nil
  def uv(output), do: find(uv_rules(), output)

  @doc "Advice about a Python that did not start, by its last lines."
  @spec python(String.t() | [String.t()]) :: String.t() | nil
  def python(lines), do: find(python_rules(), lines |> List.wrap() |> Enum.join("\n"))

  @doc "Advice about a Python that did not start because a file in `directories` has the name of one of its modules."
  @spec hidden([String.t()], [Path.t()]) :: String.t() | nil
  def hidden(lines, directories) do
    names =
      for [_, name] <- Regex.scan(~r/(?:module|from|named) '(\w+)/, Enum.join(lines, "\n")),
          uniq: true,
          do: name

    files = for name <- names, dir <- directories, do: {name, Path.join(dir, name <> ".py")}

    with {name, file} <- Enum.find(files, fn {_name, file} -> File.exists?(file) end),
         do: "#{file} hides Python's own module #{name}: rename it, or take its directory out of PYTHONPATH"
  end

  # uv folds its sentences at the width of a terminal.
  defp find(rules, text) do
    text = String.replace(text, ~r/\s*\n\s*(│|╰─▶|├─▶)?\s*/u, " ")

    Enum.find_value(rules, fn {pattern, hint} ->
      with [_ | found] <- Regex.run(pattern, text), do: String.replace(hint, "\\1", List.first(found) || "")
    end)
  end
end
