defmodule PyPort.Pool.PolicyTest do
  # When a server is due, and how long one that crashes waits: facts in, decision out.
  use ExUnit.Case, async: true

  alias PyPort.Pool.Policy

  @none %{max_requests: :infinity, max_age: :infinity, max_rss: :infinity}
  @facts %{requests: 10, age_ms: 1_000, rss_bytes: 50_000_000}

  test "without limits nothing is ever due" do
    assert Policy.due(%{requests: 10 ** 12, age_ms: 10 ** 12, rss_bytes: 10 ** 12}, @none) == nil
  end

  test "each limit is reached when its number is, and not one before" do
    assert Policy.due(@facts, %{@none | max_requests: 11}) == nil
    assert Policy.due(@facts, %{@none | max_requests: 10}) == :max_requests
    assert Policy.due(@facts, %{@none | max_age: 1_001}) == nil
    assert Policy.due(@facts, %{@none | max_age: 1_000}) == :max_age
    assert Policy.due(@facts, %{@none | max_rss: 50_000_001}) == nil
    assert Policy.due(@facts, %{@none | max_rss: 50_000_000}) == :max_rss
  end

  test "memory that is not known, or was there from the start, replaces no server" do
    assert Policy.due(%{@facts | rss_bytes: nil}, %{@none | max_rss: 1}) == nil
    assert Policy.due(%{@facts | requests: 0}, %{@none | max_rss: 1}) == nil
  end

  test "the first crash costs no wait, those that follow it soon cost more and more, up to half a minute" do
    assert Enum.map(1..5, &Policy.backoff_ms(&1, false)) == [0, 100, 200, 400, 800]
    assert Policy.backoff_ms(1_000_000, false) == 30_000
  end

  test "ten crashes of servers that had answered requests cost no wait" do
    assert Enum.map(1..10, &Policy.backoff_ms(&1, true)) == List.duplicate(0, 10)
    assert Enum.map(11..13, &Policy.backoff_ms(&1, true)) == [100, 200, 400]
    assert Policy.backoff_ms(1_000_000, true) == 30_000
  end

  test "crashes count while they follow one another within ten seconds" do
    assert Policy.crashes(0, 5) == 1
    assert Policy.crashes(4, 9_999) == 5
    assert Policy.crashes(4, nil) == 5
    assert Policy.crashes(4, 10_000) == 1
  end
end
