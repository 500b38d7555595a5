defmodule Bench.Subjects do
  # The requests and servers that several measurements use.

  @timeout 120_000

  @doc "A server that is ready. Its Python is that of $PYPORT_PYTHON."
  def server(options \\ []) do
    {:ok, pid} = PyPort.Server.start_link(options)
    {:ok, nil} = PyPort.eval("pass", %{}, server: pid, timeout: @timeout)
    pid
  end

  def stop(pid), do: GenServer.stop(pid, :normal, 30_000)

  def os_pid(pid), do: PyPort.Server.os_pid(pid)

  @doc "The request that everything else is compared with; the default options, as people write it."
  def eval(server), do: {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server)

  def call(server), do: {:ok, 3.0} = PyPort.call("math:sqrt", [9.0], %{}, server: server)

  def globals(server), do: {:ok, 42} = PyPort.eval("x * y", %{x: 6, y: 7}, server: server)

  def callback(server), do: {:ok, 2} = PyPort.eval("f(1)", %{f: &(&1 + 1)}, server: server)

  def session(session), do: {:ok, 3} = PyPort.eval("x", %{}, session: session)

  @doc "The bytes of such a request: what a bare echo is sent in its place."
  def request_bytes do
    body = {%{deadline_ms: 5000}, "1 + 1", %{}}
    :eval |> PyPort.Wire.request(<<1::64>>, body, true) |> IO.iodata_to_binary()
  end

  def there_and_back(server, value) do
    {:ok, result} =
      PyPort.eval("x", %{x: value}, server: server, binary_as: binary_as(value), timeout: @timeout)

    result
  end

  # Bytes are bytes; in a document binaries are text, which has to be decoded.
  defp binary_as(value) when is_binary(value), do: :bytes
  defp binary_as(_document), do: :str

  @doc "The payloads of the promise."
  def payload(:ints), do: for(n <- 1..100_000, do: rem(n * 7919, 1_000_000_007))
  def payload(:floats), do: for(n <- 1..100_000, do: :math.sin(n) * 1000)

  def payload(:datetimes) do
    for n <- 1..100_000, do: NaiveDateTime.add(~N[2024-02-29 12:00:00.000001], n, :second)
  end

  def payload(:dates), do: for(n <- 1..100_000, do: Date.add(~D[2000-01-01], rem(n * 7919, 20_000)))

  def payload(:maps) do
    for n <- 1..10_000,
        do: %{id: n, name: "user #{n}", age: rem(n, 90), score: n * 0.5, ok: rem(n, 2) == 0}
  end

  # 1 MiB of bytes on the wire.
  def payload(:document) do
    rows =
      for n <- 1..3_900 do
        %{
          "id" => rem(n * 7919, 1_000_000_007),
          "name" => Enum.at(~w(Ada Grace Edsger Barbara), rem(n, 4)) <> Integer.to_string(n),
          "email" => "user#{n}@example.org",
          "active" => rem(n, 3) == 0,
          "score" => :math.cos(n) * 100,
          "tags" => Enum.take(~w(red green blue violet amber), rem(n, 3) + 1),
          "address" => %{"street" => "#{n} Main St", "city" => "Zürich", "zip" => nil},
          "history" => for(k <- 1..8, do: rem(n * k, 1000))
        }
      end

    %{"rows" => rows, "total" => length(rows)}
  end
end
