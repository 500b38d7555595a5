defmodule PyPort.Test.FakePython do
  # A Python that speaks the protocol by hand: the code of each `eval` is run as the dialogue that the test wants to
  # see, with `id`, `opts`, `send(*elements)`, `recv()`, `A` (an atom) and `page(running, off_main)` at hand. For what the real server would
  # never do, or does too well.
  import PyPort.Test.Servers, only: [start_server: 1]

  @source ~S'''
  import faulthandler, os, signal, sys, time
  sys.path.insert(0, sys.argv[-1])
  from port_server.etf import Atom as A, decode, encode

  # Pings come at any time, and no dialogue is about them.
  def recv():
      header = read(4)
      message = decode(read(int.from_bytes(header, "big")), binary_as="bytes")
      return recv() if message[0] == "ping" else message

  def read(size):
      data = b""
      while len(data) < size:
          more = os.read(7, size - len(data))
          if not more:
              os._exit(0)
          data += more
      return data

  def frame(*elements):
      data = encode(tuple(elements))
      return len(data).to_bytes(4, "big") + data

  def send(*elements):
      write(frame(*elements))

  def write(data):
      while data:
          data = data[os.write(8, data):]

  faulthandler.register(signal.SIGUSR2)
  page_fd = os.open(recv()[2]["status_page"], os.O_WRONLY)

  def page(running=b"", off_main=0, heartbeats=0):
      head = b"PYP1\1" + off_main.to_bytes(2, "little") + bytes(8)
      os.pwrite(page_fd, head + bytes([len(running)]) + running.ljust(32, b"\0") + heartbeats.to_bytes(8, "little") + bytes(8), 0)

  features = [A("eval")]
  send(A("hello"), 1, {A("features"): features, A("os_pid"): os.getpid()})
  while True:
      message = recv()
      if message[0] == "eval":
          _, id, opts, code, globals_ = message
          names = {"id": id, "opts": opts, "globals_": globals_, "send": send, "recv": recv, "A": A, "page": page}
          exec(code.decode(), names | {"frame": frame, "write": write, "os": os, "time": time})
      elif message[0] == "shutdown":
          send(A("goodbye"), A("shutdown"))
          os._exit(0)
  '''

  @doc "A server over such a Python. Its first answer to `eval(\"1\")` is given."
  def start_fake(dir, options \\ []), do: start_server([python: fake_python(dir)] ++ options)

  @doc "Such a Python by itself, for the option `:python`."
  def fake_python(dir) do
    script = Path.join(dir, "fake.py")
    File.write!(script, String.replace(@source, "exec(code.decode(), names", run_or_one()))
    start = Path.join(dir, "python")
    python = System.get_env("PYPORT_PYTHON") || "python3"

    # The client's words are `-P -c BOOT PACKAGE_PATH`; the last is what is wanted of them. The port is on fds 7 and 8.
    File.write!(start, """
    #!/bin/sh
    for last; do :; done
    exec '#{python}' -P "$(dirname "$0")/fake.py" "$last"
    """)

    File.chmod!(start, 0o755)
    start
  end

  # `start_server/1` asks for 1 to see that its server is there.
  defp run_or_one, do: "exec(code.decode() if code != b'1' else 'send(A(\"ok\"), id, 1)', names"
end
