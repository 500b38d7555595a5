defmodule PyPort.Server.LivenessTest do
  # The table of states, row by row; time is a number here.
  use ExUnit.Case, async: true

  alias PyPort.Server.Liveness

  @interval 1_000

  defp sample(fields \\ []) do
    Map.merge(%{heard: 0, received: 0, sent: 0, process: {:alive, ?S, 0}, open?: false}, Map.new(fields))
  end

  # Judged once a second from 0 on with these samples; the last state counts.
  defp states(liveness \\ Liveness.new(@interval, 0), samples) do
    {states, liveness} =
      samples
      |> Enum.with_index()
      |> Enum.map_reduce(liveness, fn {sample, second}, liveness ->
        Liveness.judge(liveness, sample, second * 1_000)
      end)

    {states, liveness}
  end

  defp last(samples), do: samples |> states() |> elem(0) |> List.last()

  describe "heard of lately" do
    test "it is what the heartbeat says, whatever its CPU and state" do
      for said <- [:idle, :busy],
          state <- [?R, ?S, ?D, ?T, ?t, ?I],
          cpu <- [0, 10_000],
          open? <- [true, false] do
        liveness = @interval |> Liveness.new(0) |> Liveness.said(said)
        {_verdict, liveness} = Liveness.judge(liveness, sample(), 0)
        sample = sample(heard: 1, process: {:alive, state, cpu}, open?: open?)
        assert {^said, _liveness} = Liveness.judge(liveness, sample, 1_000)
      end
    end

    test "before the first heartbeat its requests tell" do
      liveness = Liveness.new(@interval, 0)
      assert {:idle, _} = Liveness.judge(liveness, sample(open?: false), 10)
      assert {:busy, _} = Liveness.judge(liveness, sample(open?: true), 10)
    end

    test "without /proc it is what the heartbeat says, too" do
      liveness = @interval |> Liveness.new(0) |> Liveness.said(:busy)
      assert {:busy, _} = Liveness.judge(liveness, sample(heard: 1, process: :unknown), 5_000)
    end
  end

  describe "heard of, but no frame arrives" do
    test "three heartbeats that were sent and never came: unreadable, whatever else is seen" do
      for state <- [?R, ?S], open? <- [true, false] do
        samples = for n <- 0..3, do: sample(heard: n, sent: n, process: {:alive, state, n}, open?: open?)
        {states, _} = states(samples)
        assert states |> Enum.drop(-1) |> Enum.all?(&(&1 in [:idle, :busy]))
        assert List.last(states) == :unreadable
      end
    end

    test "a frame that takes long is not: meanwhile no heartbeat is sent" do
      assert last(for n <- 0..30, do: sample(heard: n, sent: 0)) == :idle
    end

    test "frames that arrive are read, however many heartbeats there were" do
      assert last(for n <- 0..30, do: sample(heard: n, received: n, sent: 10 * n)) == :idle
    end

    test "heartbeats in quick succession may all be on their way" do
      liveness = Liveness.new(20, 0)
      {_, liveness} = Liveness.judge(liveness, sample(heard: 0), 0)
      {state, liveness} = Liveness.judge(liveness, sample(heard: 1, sent: 10), 200)
      assert state == :idle
      assert {:unreadable, _} = Liveness.judge(liveness, sample(heard: 2, sent: 50), 1_000)
    end

    test "after a pause of the BEAM it has a grace" do
      liveness = Liveness.new(@interval, 0)
      {_, liveness} = Liveness.judge(liveness, sample(), 0)
      liveness = Liveness.tick(liveness, 1_000, 9_000)
      assert {:idle, liveness} = Liveness.judge(liveness, sample(heard: 1, sent: 9), 9_000)
      assert {:unreadable, _} = Liveness.judge(liveness, sample(heard: 2, sent: 11), 11_000)
    end

    test "a process that is gone is gone" do
      samples = for n <- 0..4, do: sample(heard: n, sent: n, process: :absent)
      assert last(samples) == :exited
    end
  end

  describe "not heard of lately" do
    test "CPU that rises: the interpreter is held, with and without a request" do
      for open? <- [true, false] do
        samples = for second <- 0..4, do: sample(process: {:alive, ?R, second * 900}, open?: open?)
        assert last(samples) == :gil_held
      end
    end

    test "a fair part of a core is rising, too; what a waiting thread takes is not" do
      assert last(for second <- 0..4, do: sample(process: {:alive, ?S, second * 110}, open?: true)) ==
               :gil_held

      assert last(for second <- 0..4, do: sample(process: {:alive, ?S, second * 40}, open?: true)) == :stuck
    end

    test "state T: stopped, whatever its CPU did and whether requests wait" do
      for state <- [?T, ?t], open? <- [true, false], cpu <- [0, 900] do
        samples = for second <- 0..4, do: sample(process: {:alive, state, second * cpu}, open?: open?)
        assert last(samples) == :stopped
      end
    end

    test "CPU flat with a request open: stuck" do
      assert last(List.duplicate(sample(open?: true), 5)) == :stuck
    end

    test "CPU flat with none open: lost" do
      assert last(List.duplicate(sample(open?: false), 5)) == :lost
    end

    test "no /proc: unknown" do
      for open? <- [true, false] do
        assert last(List.duplicate(sample(process: :unknown, open?: open?), 5)) == :unknown
      end
    end

    test "it changes with what is seen: stopped, then going on, then heard of again" do
      {states, _} =
        states([
          sample(heard: 1),
          sample(heard: 2),
          sample(heard: 2),
          sample(heard: 2),
          sample(heard: 2, process: {:alive, ?T, 0}),
          sample(heard: 2, process: {:alive, ?R, 900}),
          sample(heard: 3, process: {:alive, ?R, 1_800})
        ])

      assert states == [:idle, :idle, :idle, :idle, :stopped, :gil_held, :idle]
    end
  end

  describe "gone" do
    test "absent or a zombie: exited, heard of or not" do
      for process <- [:absent, {:alive, ?Z, 0}, {:alive, ?X, 5}], at <- [0, 60_000], open? <- [true, false] do
        liveness = @interval |> Liveness.new(0) |> Liveness.said(:busy)
        assert {:exited, _} = Liveness.judge(liveness, sample(process: process, open?: open?), at)
      end
    end

    test "grace does not keep a dead one alive" do
      liveness = @interval |> Liveness.new(0) |> Liveness.tick(0, 5_000)
      assert {:exited, _} = Liveness.judge(liveness, sample(process: :absent), 5_001)
    end
  end

  describe "time" do
    test "silence counts from two heartbeats and a half on, and for short intervals from 300 ms beyond one" do
      for {interval, stale} <- [{1_000, 2_500}, {10_000, 25_000}, {100, 400}, {1, 301}] do
        liveness = interval |> Liveness.new(0) |> Liveness.said(:idle)
        assert Liveness.stale_ms(liveness) == stale
        {:idle, liveness} = Liveness.judge(liveness, sample(), 0)
        assert {:idle, _} = Liveness.judge(liveness, sample(), stale - 1)
        assert {:lost, _} = Liveness.judge(liveness, sample(), stale)
      end
    end

    test "negative times are times like others" do
      liveness = @interval |> Liveness.new(-90_000) |> Liveness.said(:idle)
      {:idle, liveness} = Liveness.judge(liveness, sample(heard: 1), -89_000)
      assert Liveness.silent_ms(liveness, -88_000) == 1_000
      assert {:lost, _} = Liveness.judge(liveness, sample(heard: 1), -86_000)
    end

    test "a tick more than half a second late gives one interval of grace, and no more" do
      liveness = @interval |> Liveness.new(0) |> Liveness.said(:idle)
      {:idle, liveness} = Liveness.judge(liveness, sample(), 0)

      liveness = Liveness.tick(liveness, 1_000, 61_000)
      assert {:idle, liveness} = Liveness.judge(liveness, sample(), 61_000)
      assert {:idle, liveness} = Liveness.judge(liveness, sample(), 61_999)
      assert {:lost, _} = Liveness.judge(liveness, sample(), 62_000)
    end

    test "a tick half a second late, or early, gives none" do
      for now <- [59_000, 60_000, 60_500] do
        liveness = @interval |> Liveness.new(0) |> Liveness.said(:idle)
        {:idle, liveness} = Liveness.judge(liveness, sample(), 0)
        assert {:lost, _} = liveness |> Liveness.tick(60_000, now) |> Liveness.judge(sample(), now)
      end
    end

    test "a look right after another one keeps what was known of the CPU" do
      samples = for second <- 0..4, do: sample(process: {:alive, ?R, second * 900}, open?: true)
      {_states, liveness} = states(samples)
      # 10 ms later the system's clock of 10 ms has not moved.
      assert {:gil_held, liveness} =
               Liveness.judge(liveness, sample(process: {:alive, ?R, 3_600}, open?: true), 4_010)

      # 150 ms later it has had its chance.
      assert {:stuck, _} = Liveness.judge(liveness, sample(process: {:alive, ?S, 3_600}, open?: true), 4_150)
    end

    test "the same is heard only once" do
      liveness = @interval |> Liveness.new(0) |> Liveness.said(:busy)
      {:busy, liveness} = Liveness.judge(liveness, sample(heard: {10, 1}), 2_000)
      {:busy, liveness} = Liveness.judge(liveness, sample(heard: {10, 1}), 4_000)
      assert Liveness.silent_ms(liveness, 4_400) == 2_400
      # A heartbeat in the page, and no frame: heard of.
      {:busy, liveness} = Liveness.judge(liveness, sample(heard: {10, 2}), 4_400)
      assert Liveness.silent_ms(liveness, 4_400) == 0
    end
  end
end
