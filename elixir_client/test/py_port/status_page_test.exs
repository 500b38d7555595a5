defmodule PyPort.StatusPageTest do
  # The 64 bytes that Python writes while it runs, and what they say of a request that has no answer.
  use ExUnit.Case, async: true

  alias PyPort.{Error, StatusPage}

  defp bytes(options \\ []) do
    id = Keyword.get(options, :running, "")

    [
      Keyword.get(options, :magic, "PYP1"),
      Keyword.get(options, :phase, 1),
      <<Keyword.get(options, :off_main, 0)::16-little>>,
      <<Keyword.get(options, :sent, 0)::32-little, "m", 0::24>>,
      Keyword.get(options, :size, byte_size(id)),
      String.pad_trailing(Keyword.get(options, :last, id), 32, <<0>>),
      <<Keyword.get(options, :heartbeats, 0)::64-little, 0::64>>
    ]
    |> IO.iodata_to_binary()
  end

  defp page(options \\ []), do: options |> bytes() |> StatusPage.parse()

  test "it is read as it is written" do
    id = <<7::64>>

    assert page(phase: 2, off_main: 513, running: id, heartbeats: 0x0102030405, sent: 0x01020304) ==
             %StatusPage{
               phase: :draining,
               off_main: 513,
               running: id,
               last: id,
               heartbeats: 0x0102030405,
               sent: 0x01020304
             }

    assert page() == %StatusPage{
             phase: :serving,
             off_main: 0,
             running: nil,
             last: nil,
             heartbeats: 0,
             sent: 0
           }

    assert %StatusPage{running: nil, last: ^id} = page(last: id)
    assert page(phase: 0).phase == :starting
    assert page(running: String.duplicate("x", 32)).running == String.duplicate("x", 32)
  end

  test "what is no page is none" do
    assert StatusPage.parse("") == nil
    assert StatusPage.parse(<<0::512>>) == nil
    assert page(magic: "PYP2") == nil
    assert page(phase: 3) == nil
    assert page(size: 33) == nil
    whole = bytes()
    for size <- 0..63, do: assert(StatusPage.parse(binary_part(whole, 0, size)) == nil)
    assert StatusPage.parse(whole <> "x") == nil
  end

  @tag :tmp_dir
  test "it is made empty, and not over another one", %{tmp_dir: dir} do
    assert StatusPage.make(dir) == :ok
    assert File.read!(StatusPage.path(dir)) == <<0::512>>
    assert StatusPage.make(dir) == {:error, :eexist}
  end

  test "where a request stands" do
    [one, two, three] = for number <- 1..3, do: <<number::64>>

    for {page, id, place, begun} <- [
          {page(running: two), two, :running, true},
          {page(running: two, off_main: 3), two, :running, true},
          {page(running: two), three, :waiting, false},
          # It may have ended, its answer not yet written.
          {page(running: two), one, :passed, nil},
          {page(), one, :waiting, false},
          {page(off_main: 1), one, :off_main, nil},
          # Main is done with the second: what was not sent after it may have run, its answer lost.
          {page(last: two), one, :passed, nil},
          {page(last: two), two, :passed, nil},
          {page(last: two), three, :waiting, false},
          {page(last: two, off_main: 1), three, :off_main, nil},
          {page(running: two, off_main: 1), three, :off_main, nil},
          {nil, one, :unknown, nil}
        ] do
      assert {StatusPage.place(page, id), StatusPage.begun(page, id)} == {place, begun}
    end
  end

  test "of a process that may go on nothing is known not to have begun" do
    [one, two, three] = for number <- 1..3, do: <<number::64>>

    for page <- [page(running: two), page(last: two), page(), nil], id <- [one, two, three] do
      expected = if page != nil and page.running == id, do: true
      assert StatusPage.begun(StatusPage.alive(page), id) == expected
    end
  end

  test "ids are numbers: 256 comes after 255" do
    assert StatusPage.place(page(running: <<255::64>>), <<256::64>>) == :waiting
    assert StatusPage.place(page(running: <<256::64>>), <<255::64>>) == :passed
  end

  test "the report of a death tells each caller of its own request" do
    report = %Error{kind: :killed, message: "ended"}
    reason = {:shutdown, {:python_ended, report, page(running: <<2::64>>)}}
    assert %Error{kind: :killed, begun: true} = Error.of_exit(reason, <<2::64>>)
    assert %Error{kind: :killed, begun: false} = Error.of_exit(reason, <<3::64>>)
    assert %Error{kind: :killed, begun: nil} = Error.of_exit(reason, <<1::64>>)
    assert %Error{kind: :killed, begun: nil} = Error.of_exit(reason)
    assert %Error{begun: nil} = Error.of_exit({:shutdown, {:python_ended, report, nil}}, <<2::64>>)
  end
end
