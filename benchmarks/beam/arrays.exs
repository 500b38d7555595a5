defmodule Bench.Arrays do
  # Arrays and tables, one way each, beside what carries as many bytes.

  alias Bench.{Measure, Subjects}

  @timeout 120_000
  @numbers 1_000_000
  @rows 100_000

  # 381 MiB: a copy more is seen, whatever else the process does.
  @large_numbers 50_000_000

  # The columns have five types. `written` is what pyarrow itself does.
  @names """
  import time
  import numpy as np, pandas as pd, pyarrow as pa, pyarrow.ipc
  from port_server import etf
  from port_server.etf import tables

  array = np.arange(#{@numbers}, dtype="f8")
  binary = array.tobytes()
  scalars = list(array)
  rows = np.arange(#{@rows})
  frame = pd.DataFrame({
      "n": rows,
      "x": rows * 0.5,
      "text": [f"row {n}" for n in range(#{@rows})],
      "flag": rows % 2 == 0,
      "day": pd.date_range("2000-01-01", periods=#{@rows}, freq="min"),
  })

  def written():
      table = pa.Table.from_pandas(frame)
      sink = pa.BufferOutputStream()
      with pa.ipc.new_stream(sink, table.schema) as writer:
          writer.write_table(table)
      return memoryview(sink.getvalue())

  def seconds(function, *args):
      began = time.perf_counter()
      function(*args)
      return time.perf_counter() - began
  """

  @doc "1,000,000 float64 out and in, and 100,000 rows of 5 columns out."
  def arrays(%{rounds: rounds, out: out}) do
    server = Subjects.server(init_code: @names)
    options = [server: server, timeout: @timeout]
    binary = PyPort.eval!("binary", %{}, options)
    tensor = PyPort.eval!("array", %{}, [arrays: :tensor] ++ options)

    subjects = [
      {"array/out", several(fn -> {:ok, _} = PyPort.eval("array", %{}, [arrays: :tensor] ++ options) end)},
      {"array/binary_out", several(fn -> {:ok, _} = PyPort.eval("binary", %{}, options) end)},
      {"array/in", several(fn -> {:ok, @numbers} = PyPort.eval("len(x)", %{x: tensor}, options) end)},
      {"array/binary_in",
       several(fn -> {:ok, _} = PyPort.eval("len(x)", %{x: binary}, [binary_as: :bytes] ++ options) end)},
      {"table/stream", in_python("seconds(tables.struct_of, frame)", options)},
      {"table/pyarrow", in_python("seconds(written)", options)},
      {"scalars/list", several(fn -> {:ok, _} = PyPort.eval("scalars", %{}, options) end, 3)},
      {"scalars/tolist", several(fn -> {:ok, _} = PyPort.eval("array.tolist()", %{}, options) end, 3)},
      {"records/encoded", in_python("seconds(lambda: etf.encode(frame.to_dict('records')))", options, 3)},
      {"records/made", in_python("seconds(frame.to_dict, 'records')", options, 3)},
      {"table/out", several(fn -> {:ok, _} = PyPort.eval("frame", %{}, [tables: :arrow] ++ options) end)},
      {"table/pyarrow_out", several(fn -> {:ok, _} = PyPort.eval("written()", %{}, options) end)}
    ]

    for {_name, fun} <- subjects, do: fun.()
    Measure.rounds(subjects, rounds, out)
    Subjects.stop(server)
    peaks(out)
  end

  defp several(fun, times \\ 40) do
    fn ->
      :erlang.garbage_collect()
      Measure.p50(fun, times)
    end
  end

  # The median, in ns.
  defp in_python(code, options, times \\ 15) do
    code = "sorted(#{code} for _ in range(#{times}))[#{div(times, 2)}]"
    fn -> PyPort.eval!(code, %{}, options) * 1.0e9 end
  end

  # The bytes that the largest array adds to the peak of Python, and to the BEAM when it has arrived. The BEAM's own port driver
  # has each frame twice for a moment, so its peak is the same for a binary.
  defp peaks(out) do
    server = Subjects.server(init_code: "import numpy\narray = numpy.ones(#{@large_numbers})")
    os_pid = Subjects.os_pid(server)
    Measure.write(out, "array/python_before", 1, peak_bytes(os_pid))
    Measure.write(out, "array/beam_before", 1, :erlang.memory(:total))
    tensor = PyPort.eval!("array", %{}, server: server, arrays: :tensor, timeout: @timeout)
    :erlang.garbage_collect()
    Measure.write(out, "array/beam_after", 1, :erlang.memory(:total))
    Measure.write(out, "array/python_peak", 1, peak_bytes(os_pid))
    8 * @large_numbers == byte_size(tensor.data) || raise "another array"
    Subjects.stop(server)
  end

  defp peak_bytes(os_pid) do
    [_, kib] = Regex.run(~r/VmHWM:\s+(\d+) kB/, File.read!("/proc/#{os_pid}/status"))
    String.to_integer(kib) * 1024
  end
end
