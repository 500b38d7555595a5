defmodule PyPort.Env.ReleaseTest do
  # What the step refuses before it does anything; that a release runs is tested with real ones (tests/env).
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  test "an option that it does not know is refused, and nothing of an earlier release touched", %{
    tmp_dir: dir
  } do
    File.mkdir_p!(Path.join(dir, "py_port/earlier"))

    for options <- [[carry_pyton: true], [carry_python: :yes], [carry_python: nil]] do
      release = %{options: [py_port: options], path: dir, overlays: []}

      assert_raise ArgumentError, ~r/carry_python: :auto.*#{Regex.escape(inspect(options))}/, fn ->
        PyPort.Release.copy_environments(release)
      end
    end

    assert File.dir?(Path.join(dir, "py_port/earlier"))
  end
end
