defmodule PyPort.StreamTest do
  # The client's half of streams, against a Python that is told what to send.
  use ExUnit.Case, async: true

  import PyPort.Test.{FakePython, Processes, Servers}

  alias PyPort.Error

  @moduletag :tmp_dir

  # Sends numbers as far as there is credit, until it is cancelled; notes what it was sent.
  @count """
  left, n, log = opts["credit"], 0, []
  while True:
      while left:
          send(A("yield"), id, n)
          n, left = n + 1, left - 1
      message = recv()
      log.append(message)
      if message[0] == "credit":
          left += message[2]
      elif message[0] == "cancel":
          send(A("error"), id, {A("kind"): A("cancelled"), A("message"): f"after {n}"})
          break
  """

  defp stream(server, code, options \\ []), do: PyPort.stream(code, %{}, [server: server] ++ options)

  test "a stream without an end is as lazy as its credit", %{tmp_dir: dir} do
    server = start_fake(dir)
    assert server |> stream(@count) |> Enum.take(5) == [0, 1, 2, 3, 4]
    assert server |> stream(@count, credit: 1) |> Enum.take(5) == [0, 1, 2, 3, 4]
    assert server |> stream(@count, credit: 3) |> Enum.take(1_000) == Enum.to_list(0..999)
    assert server |> stream(@count) |> Enum.take(10_000) == Enum.to_list(0..9_999)
    assert nothing_left?(server)
    refute_received _anything
  end

  test "never more than the credit is on the way", %{tmp_dir: dir} do
    server = start_fake(dir)

    # It sends how many it was given credit for, in all, so far.
    code = """
    given, sent = opts["credit"], 0
    while sent < 300:
        while sent < given:
            sent += 1
            send(A("yield"), id, (sent, given))
        message = recv()
        if message[0] == "credit":
            given += message[2]
    send(A("ok"), id, None)
    """

    for credit <- [1, 2, 7, 64] do
      for {item, index} <- server |> stream(code, credit: credit) |> Stream.with_index(1) do
        {sent, given} = item
        assert sent == index
        # What has been consumed by then, and what may be made ahead.
        assert given - index <= 2 * credit
      end
    end
  end

  test "two suspended streams run side by side", %{tmp_dir: dir} do
    {one, two} = {start_fake(dir), start_fake(dir)}
    zipped = Stream.zip(stream(one, @count), Stream.map(stream(two, @count, credit: 4), &(-&1)))
    assert Enum.take(zipped, 600) == for(n <- 0..599, do: {n, -n})
    assert nothing_left?(one)
    assert nothing_left?(two)
  end

  test "an error is raised after the items before it", %{tmp_dir: dir} do
    server = start_fake(dir)

    code = """
    for n in range(3):
        send(A("yield"), id, n)
    send(A("error"), id, {A("kind"): A("python"), A("type"): b"ValueError", A("message"): b"boom"})
    """

    test = self()

    error =
      assert_raise Error, ~r/boom/, fn -> server |> stream(code) |> Enum.each(&send(test, {:item, &1})) end

    assert %Error{kind: :python, type: "ValueError"} = error
    for n <- 0..2, do: assert_received({:item, ^n})
    assert nothing_left?(server)
  end

  test "the longest wait for an item is the timeout, and the generator is told to stop", %{tmp_dir: dir} do
    server = start_fake(dir)

    code = """
    send(A("yield"), id, 1)
    assert recv()[0] == "cancel"
    send(A("error"), id, {A("kind"): A("cancelled"), A("message"): b""})
    """

    assert_raise Error, ~r/no item within 50 ms/, fn ->
      server |> stream(code, timeout: 50) |> Enum.to_list()
    end

    assert nothing_left?(server)
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
  end

  test "a consumer that dies stops its generator", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()
    consumer = spawn(fn -> server |> stream(@count) |> Enum.each(&send(test, &1)) end)
    assert_receive 1_000, 5_000
    Process.exit(consumer, :kill)
    assert nothing_left?(server)
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
  end

  test "a server that dies raises, after the items before", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()
    code = "send(A('yield'), id, 1); import os; os._exit(3)"

    ExUnit.CaptureLog.capture_log(fn ->
      assert_raise Error, ~r/exit status 3/, fn -> server |> stream(code) |> Enum.each(&send(test, &1)) end
    end)

    assert_received 1
  end

  test "handles in items that are never consumed are released", %{tmp_dir: dir} do
    server = start_fake(dir)
    log = Path.join(dir, "released")

    code = """
    for n in (1, 2, 3, 4):
        handle = {A("__struct__"): A("Elixir.PyPort.Object"), A("server"): None, A("token"): b"", A("id"): n,
                  A("type"): b"T", A("repr"): b""}
        send(A("yield"), id, handle, [n])
    assert recv()[0] == "cancel"
    send(A("ok"), id, None)
    with open(#{inspect(log)}, "a") as file:
        while True:
            message = recv()
            if message[0] == "release":
                print(message[1], file=file, flush=True)
    """

    assert [%PyPort.Object{id: 1}, %PyPort.Object{id: 2}] = server |> stream(code) |> Enum.take(2)
    assert eventually(fn -> match?({:ok, text} when byte_size(text) > 7, File.read(log)) end)
    assert log |> File.read!() |> String.split("\n", trim: true) |> Enum.sort() == ["[3]", "[4]"]
    # The two that were read belong to their reader.
    assert held(server) == 2
  end

  test "what was printed is written before the end", %{tmp_dir: dir} do
    server = start_fake(dir)
    {:ok, device} = StringIO.open("")

    code = """
    for n in range(3):
        send(A("output"), id, A("stdout"), b"%d;" % n)
        send(A("yield"), id, n)
    send(A("ok"), id, None)
    """

    assert server |> stream(code, stdout: device) |> Enum.to_list() == [0, 1, 2]
    assert StringIO.contents(device) == {"", "0;1;2;"}
  end

  test "wrong options are refused where the stream is made" do
    assert_raise ArgumentError, ~r/:credit must be a number of items/, fn ->
      PyPort.stream("x", %{}, credit: 0)
    end

    assert_raise ArgumentError, ~r/unknown option :credit/, fn -> PyPort.eval("x", %{}, credit: 1) end
  end
end
