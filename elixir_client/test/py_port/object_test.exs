defmodule PyPort.ObjectTest do
  use ExUnit.Case, async: true

  import PyPort.Test.Processes, only: [eventually: 1]
  import PyPort.Test.Servers

  alias PyPort.{Error, Object}

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, heartbeat_interval: 50})
    {:ok, server: __MODULE__}
  end

  defp object(server, options \\ []), do: PyPort.eval!("object()", %{}, [server: server] ++ options)
  defp lives?(object), do: match?({:ok, _}, PyPort.call({object, "__hash__"}))

  describe "a handle" do
    test "is the very same object wherever it goes back", %{server: server} do
      object = object(server)
      assert %Object{type: "object", repr: "<object object at" <> _} = object
      id = PyPort.eval!("id(o)", %{o: object})
      assert PyPort.eval!("id(d['deep'][0])", %{d: %{"deep" => [object]}}, server: server) == id
      assert PyPort.call!("builtins:id", [object]) == id

      assert PyPort.eval!("f(x=o)", %{"f" => PyPort.eval!("lambda x: id(x)", %{}, server: server), o: object}) ==
               id

      assert PyPort.call!("builtins:dict", [], x: object)["x"].type == "object"
    end

    test "stands inside of values, too", %{server: server} do
      assert %{"a" => [%Object{}, 1, %Object{}]} =
               PyPort.eval!("{'a': [object(), 1, lambda: 2]}", %{}, server: server)
    end

    test "is made of any value that is asked for as one", %{server: server} do
      list = PyPort.eval!("[3, 1, 2]", %{}, server: server, return: :object)
      assert %Object{type: "list", repr: "[3, 1, 2]"} = list
      assert PyPort.call!({list, "sort"}) == nil
      assert PyPort.eval!("l", %{l: list}) == [1, 2, 3]

      assert %Object{type: "list"} =
               PyPort.call!("builtins:list", [[1]], %{}, server: server, return: :object)
    end

    test "gives attributes, items and results of methods without source text", %{server: server} do
      counter =
        PyPort.eval!("import collections; collections.Counter('abca')", %{}, server: server, return: :object)

      assert PyPort.getitem(counter, "a") == {:ok, 2}
      assert PyPort.call({counter, "most_common"}, [1]) == {:ok, [{"a", 2}]}
      assert {:ok, %Object{} = method} = PyPort.getattr(counter, :most_common)
      assert PyPort.call(method, [1]) == {:ok, [{"a", 2}]}
      assert {:error, %Error{type: "AttributeError"}} = PyPort.getattr(counter, "nothing")
      assert {:error, %Error{type: "TypeError"}} = PyPort.call(counter)
    end

    test "is inspected by type and repr, in one short line", %{server: server} do
      assert inspect(object(server)) =~ ~r/^#PyPort.Object<object <object object at 0x[0-9a-f]+>>$/

      long = %Object{
        server: self(),
        token: "",
        id: 1,
        type: "T",
        repr: "a\n  b" <> String.duplicate("x", 500)
      }

      assert inspect(long) =~ ~r/^#PyPort.Object<T a bx+…>$/
      assert String.length(inspect(long)) < 110
      assert inspect(%{long | type: nil, repr: <<255>>}) =~ "#PyPort.Object<"
    end

    test "shows the repr that it has when it is inspected, and the whole of it on request", %{server: server} do
      {:ok, list} = PyPort.eval("[1]", %{}, server: server, return: :object)
      PyPort.call!({list, "append"}, ["é"])
      assert inspect(list) == "#PyPort.Object<list [1, 'é']>"
      PyPort.call!({list, "extend"}, [Enum.to_list(1..200)])
      assert inspect(list) =~ ~r/^#PyPort.Object<list \[1, 'é', 1, .{60,70}…>$/
      assert PyPort.Object.show(list) == PyPort.eval!("repr(x)", %{x: list})

      {:ok, bad} = PyPort.eval("class Bad:\n  def __repr__(self): raise KeyError\nBad()", %{}, server: server)
      assert inspect(bad) == "#PyPort.Object<Bad <Bad whose repr fails: KeyError>>"
      assert_raise Error, ~r/KeyError/, fn -> PyPort.Object.show(bad) end
    end

    test "with a repr that is slow costs its request no time, and is inspected in a limited time", %{
      server: server
    } do
      code = "import time\nclass Slow:\n  def __repr__(self): time.sleep(0.3); return 'slow'\nSlow()"
      {:ok, slow} = PyPort.eval(code, %{}, server: server, timeout: 250)
      assert slow.repr =~ ~r/^<__main__.Slow object at 0x[0-9a-f]+>$/
      late = "#PyPort.Object<Slow #{slow.repr}>"
      assert inspect(slow, custom_options: [repr_ms: 0]) == late
      {us, text} = :timer.tc(fn -> inspect(slow, custom_options: [repr_ms: 20]) end)
      assert text == late
      assert us >= 20_000
      # It was late, so the others are not asked for.
      {us, _text} = :timer.tc(fn -> inspect(List.duplicate(slow, 50)) end)
      assert us < 200_000
      assert PyPort.Object.show(slow) == "slow"
      assert Task.await(Task.async(fn -> inspect(slow, custom_options: [repr_ms: 5_000]) end)) =~ "Slow slow>"
    end

    test "is inspected when it is released, when its server is gone, and by its server", %{server: server} do
      object = object(server)
      made = "#PyPort.Object<object #{object.repr}>"
      PyPort.release(object)
      assert eventually(fn -> not lives?(object) end)
      assert inspect(object) == made
      other = start_server()
      left = object(other)
      test = self()
      :sys.replace_state(other, fn state -> send(test, inspect(left)) && state end)
      assert_receive "#PyPort.Object<object " <> _
      GenServer.stop(other)
      assert inspect(left) == "#PyPort.Object<object #{left.repr}>"
    end
  end

  describe "an object lives" do
    test "as long as the process that asked for it", %{server: server} do
      actor = start_actor()
      object = tell(actor, fn -> object(server) end)
      assert lives?(object)
      Process.exit(actor, :kill)
      assert eventually(fn -> not lives?(object) end)
      assert {:error, %Error{message: message}} = PyPort.call({object, "__hash__"})
      assert message =~ "released"
    end

    test "in the count of the status, until it is released" do
      server = start_server(heartbeat_interval: 20)
      counted = fn -> server |> PyPort.status() |> hd() |> Map.fetch!(:objects) end
      objects = PyPort.eval!("[object(), object(), object()]", %{}, server: server)
      assert eventually(fn -> counted.() == 3 end)
      PyPort.release(objects)
      assert eventually(fn -> counted.() == 0 end)
    end

    test "for whom a task works", %{server: server} do
      object = Task.await(Task.async(fn -> object(server) end))
      assert lives?(object)
      nested = Task.await(Task.async(fn -> Task.await(Task.async(fn -> object(server) end)) end))
      # The inner task's first caller was the outer one, which has ended; its heir, too.
      assert eventually(fn -> not lives?(nested) end)
      assert lives?(object)
    end

    test "for a task that outlives whom it works for", %{server: server} do
      test = self()
      starter = start_actor()

      tell(starter, fn ->
        Task.start(fn ->
          object = object(server)
          send(test, {:object, object, self()})

          receive do
            :stop -> :ok
          end
        end)
      end)

      assert_receive {:object, object, task}, 5_000
      Process.exit(starter, :kill)
      assert eventually(fn -> holds?(server, task) end)
      assert lives?(object)
      send(task, :stop)
      assert eventually(fn -> not lives?(object) end)
    end

    test "for the owner that was named", %{server: server} do
      owner = start_actor()
      object = object(server, owner: owner)
      assert lives?(object)
      Process.exit(owner, :kill)
      assert eventually(fn -> not lives?(object) end)
    end

    test "until it is released", %{server: server} do
      [one, two, three] = for _ <- 1..3, do: object(server)
      assert PyPort.release(one) == :ok
      refute lives?(one)
      assert PyPort.release([one, two]) == :ok
      refute lives?(two)
      assert lives?(three)
    end

    test "until the end of with_objects/1, unless it was given to another process", %{server: server} do
      outer = object(server)

      {one, two, kept} =
        PyPort.with_objects(fn ->
          one = object(server)
          two = PyPort.with_objects(fn -> object(server) end)
          kept = object(server)
          assert PyPort.transfer(kept, Process.whereis(PyPort.Supervisor)) == :ok
          assert lives?(one)
          {one, two, kept}
        end)

      assert eventually(fn -> not lives?(one) and not lives?(two) end)
      assert lives?(kept)
      assert lives?(outer)
      PyPort.release(kept)
    end

    test "until the end of with_objects/1, by whichever task of it they came", %{server: server} do
      outer = Task.await(Task.async(fn -> object(server) end))
      test = self()

      {mine, theirs} =
        PyPort.with_objects(fn ->
          theirs =
            1..20
            |> Task.async_stream(fn _n ->
              object(server)
            end)
            |> Enum.map(fn {:ok, object} -> object end)

          assert Enum.all?(theirs, &lives?/1)
          {object(server), theirs}
        end)

      assert eventually(fn -> not Enum.any?([mine | theirs], &lives?/1) end)
      assert lives?(outer)

      # A task may have a scope of its own.
      within = Task.await(Task.async(fn -> PyPort.with_objects(fn -> object(server) end) end))
      assert eventually(fn -> not lives?(within) end)

      # One that was given by name is kept, and so is what a task brings when the scope has ended.
      {given, task} =
        PyPort.with_objects(fn ->
          named = fn -> PyPort.eval!("object()", %{}, server: server, owner: test) end
          {Task.await(Task.async(named)), Task.async(fn -> receive(do: (:go -> object(server))) end)}
        end)

      send(task.pid, :go)
      late = Task.await(task)
      # All that was told to the server before has been done by then.
      assert held(server) >= 3
      assert lives?(given) and lives?(late)
      PyPort.release([given, late, outer])
      refute_received _anything
    end

    test "until with_objects/1 is left by an exception", %{server: server} do
      test = self()

      catch_throw(
        PyPort.with_objects(fn ->
          send(test, object(server))
          throw(:out)
        end)
      )

      assert_received %Object{} = object
      assert eventually(fn -> not lives?(object) end)
    end

    test "for whom it was transferred to", %{server: server} do
      from = start_actor()
      to = start_actor()
      object = tell(from, fn -> object(server) end)
      assert PyPort.transfer(object, to) == :ok
      Process.exit(from, :kill)
      assert eventually(fn -> not Process.alive?(from) end)
      refute holds?(server, from)
      assert lives?(object)
      Process.exit(to, :kill)
      assert eventually(fn -> not lives?(object) end)
      assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.transfer(object, self())
      assert message =~ "released"
    end

    test "and nothing is left of callers that die while their objects are on the way" do
      server = start_server(heartbeat_interval: 50)

      for n <- 1..300 do
        pid = spawn(fn -> PyPort.eval("[object(), object()]", %{}, server: server) end)
        if rem(n, 3) == 0, do: PyPort.eval("1", %{}, server: server)
        Process.exit(pid, :kill)
      end

      assert nothing_left?(server)
      # Python holds none, either: 64 more fit, where 63 and one would not.
      assert {:ok, _} = PyPort.eval("[object() for _ in range(64)]", %{}, server: server)
    end

    test "and nothing is left of answers that come too late, or cannot be read" do
      server = start_server(heartbeat_interval: 50, max_objects: 64)

      for _ <- 1..100 do
        code = "import time; time.sleep(0.002); object()"
        # Late most of the time, and at any moment: that is the point.
        PyPort.with_objects(fn -> PyPort.eval(code, %{}, server: server, timeout: 2) end)
        name = "never_met_#{System.unique_integer([:positive])}"
        code = "import port_server; (object(), port_server.Atom(name))"
        assert {:error, %Error{kind: :decode}} = PyPort.eval(code, %{name: name}, server: server)
      end

      assert nothing_left?(server)
      assert eventually(fn -> match?({:ok, _}, fill(server)) end)
    end
  end

  defp fill(server) do
    PyPort.with_objects(fn -> PyPort.eval("[object() for _ in range(64)]", %{}, server: server) end)
  end

  test "an owner of many objects is named in Logger, once, with the type of most of them" do
    server = start_server(max_objects_per_owner: 200, heartbeat_interval: 20)
    name = :"hoarder_#{System.unique_integer([:positive])}"

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        owner = start_actor()
        Process.register(owner, name)
        define = "class Frame: pass\n"
        get = fn code -> tell(owner, fn -> PyPort.eval!(define <> code, %{}, server: server) end) end
        kept = get.("[Frame() for _ in range(20)]")
        get.("[object(), Frame(), Frame()]")
        assert all_named?(server)
        # Fewer, and many again.
        PyPort.release(Enum.take(kept, 5))
        get.("[Frame(), Frame()]")
        assert all_named?(server)
      end)

    assert [line] = for(line <- String.split(log, "\n"), line =~ "owns", do: line)
    assert line =~ "(#{inspect(name)}) owns"
    assert line =~ ~r/owns 2\d objects of this Python, of 200/
    assert line =~ "of the type Frame"
  end

  test "a tenth of max_objects is a warning, once, with the type of most of them" do
    server = start_server(max_objects: 100, heartbeat_interval: 20)
    many? = fn -> :sys.get_state(server).ownership.many? end

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        kept =
          PyPort.eval!("class Frame: pass\n[object(), *[Frame() for _ in range(11)]]", %{}, server: server)

        assert eventually(many?)
        PyPort.release(Enum.take(kept, 4))
        assert eventually(fn -> held(server) == 8 end)
        again = PyPort.eval!("[object() for _ in range(4)]", %{}, server: server)
        Process.sleep(50)
        PyPort.release(kept ++ again)
        assert eventually(fn -> not many?.() end)
      end)

    assert [line] = for(line <- String.split(log, "\n"), line =~ "are held", do: line)

    assert line =~
             "12 objects of this Python are held, of 100 (max_objects); most of the latest are of the type Frame"
  end

  # With the next heartbeat.
  defp all_named?(server), do: eventually(fn -> :sys.get_state(server).ownership.crowded == [] end)

  describe "a clear error is what gives" do
    test "a handle that was made up", %{server: server} do
      object = object(server)

      for made_up <- [%{object | id: 999_999_999}, %{object | token: "guessed"}] do
        assert {:error, %Error{kind: :decode, message: message}} = PyPort.eval("o", %{o: made_up})
        assert message =~ "released" or message =~ "another server"
      end
    end

    test "an object of another server, before anything is sent", %{server: server} do
      other = start_server()
      object = object(server)

      assert {:error, %Error{kind: :unavailable, begun: false, message: message}} =
               PyPort.eval("o", %{o: object}, server: other)

      assert message =~ "another server"

      assert {:error, %Error{kind: :unavailable}} = PyPort.eval("o", %{o: [%{k: object}]}, server: other)
      # In a key it is Python that finds it.
      assert {:error, %Error{kind: :decode}} = PyPort.eval("o", %{o: %{object => 1}}, server: other)
    end

    test "a target that lives elsewhere than the server that was named", %{server: server} do
      other = start_server()
      object = object(server)

      assert_raise ArgumentError, ~r/an object carries its server/, fn ->
        PyPort.call({object, "__hash__"}, [], %{}, server: other)
      end

      assert {:ok, _} = PyPort.call({object, "__hash__"}, [], %{}, server: server)
      {:ok, session} = PyPort.open_session(server: other)

      assert_raise ArgumentError, ~r/an object carries its server/, fn ->
        PyPort.call({object, "__hash__"}, [], %{}, session: session)
      end
    end

    test "an object whose server has ended" do
      server = start_server()
      object = object(server)
      stop_supervised!(server)

      for answer <- [
            PyPort.call({object, "__hash__"}),
            PyPort.eval("o", %{o: object}),
            PyPort.transfer(object, self())
          ] do
        assert {:error, %Error{kind: :unavailable, message: message}} = answer
        assert message =~ "has ended"
      end

      assert PyPort.release(object) == :ok
    end

    test "one that was made by hand is refused by what is wrong with it, wherever it is used" do
      server = start_server()
      {:ok, object} = PyPort.eval("object()", %{}, server: server)

      uses = [
        fn object -> PyPort.eval("x", %{x: object}, server: server) end,
        fn object -> PyPort.call(object, []) end,
        fn object -> PyPort.call({object, "__hash__"}, []) end,
        fn object -> PyPort.getattr(object, "real") end,
        fn object -> PyPort.release(object) end,
        fn object -> PyPort.release([object]) end,
        fn object -> PyPort.transfer(object, self()) end,
        fn object ->
          "for x in xs: yield x" |> PyPort.stream(%{xs: object}, server: server) |> Enum.to_list()
        end
      ]

      for wrong <- [%{id: -1}, %{id: 0}, %{id: "1"}, %{id: nil}, %{server: nil}, %{server: "Far"}],
          use <- uses do
        assert_raise ArgumentError, ~r/comes from a request.* #{"#{hd(Map.keys(wrong))}: "}/, fn ->
          object |> Map.merge(wrong) |> use.()
        end
      end

      # In a key, where the client does not look, it is Python that says so.
      assert {:error, %Error{kind: :decode}} =
               PyPort.eval("x", %{x: %{%{object | id: -1} => 1}}, server: server)

      assert_raise ArgumentError, ~r/got: 17/, fn -> PyPort.release([object, 17]) end
      assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    end

    test "more objects than one process may own, and other processes get theirs" do
      server = start_server(max_objects_per_owner: 20)
      owner = start_actor()
      mine = tell(owner, fn -> for _ <- 1..20, do: object(server) end)
      full = fn code -> tell(owner, fn -> PyPort.eval(code, %{}, server: server) end) end
      assert {:error, %Error{kind: :encode, message: message}} = full.("object()")
      assert message =~ "#{inspect(owner)} owns 20 objects"
      assert message =~ "max_objects_per_owner"
      assert {:error, %Error{kind: :encode}} = full.("[object(), [object()]]")
      assert {:ok, 3} = full.("3")

      assert_raise Error, ~r/max_objects_per_owner/, fn ->
        "yield object()" |> PyPort.stream(%{}, server: server, owner: owner) |> Enum.to_list()
      end

      # For that owner, from any caller.
      assert {:error, %Error{kind: :encode}} = PyPort.eval("object()", %{}, server: server, owner: owner)
      loose = [object(server), object(server)]
      assert {:error, %Error{kind: :encode, message: message}} = PyPort.transfer(hd(loose), owner)
      assert message =~ "max_objects_per_owner"
      # Too many at once are none.
      assert {:error, %Error{kind: :encode}} =
               PyPort.eval("[object() for _ in range(21)]", %{}, server: server)

      # Python has released the refused ones.
      assert eventually(fn -> held(server) == 22 end)

      count =
        "from port_server.runtime.objects import Objects\nimport gc\n" <>
          "[len(o) for o in gc.get_objects() if type(o) is Objects]"

      assert {:ok, [22]} = PyPort.eval(count, %{}, server: server)

      PyPort.release(hd(mine))
      assert eventually(fn -> match?({:ok, %Object{}}, full.("object()")) end)
      assert length(mine ++ loose) == 22
    end

    test "more objects than max_objects" do
      server = start_server(max_objects: 2)
      kept = [object(server), object(server)]
      assert {:error, %Error{kind: :encode, message: message}} = PyPort.eval("object()", %{}, server: server)
      assert message =~ "max_objects"
      assert length(kept) == 2
    end
  end
end
