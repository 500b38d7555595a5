defmodule PyPort.Reaper do
  # One per VM: ends a Python process and all of its group when their owner has ended, by any way of
  # ending, and without Python's help. Other modules decide what is killed, and when.
  #
  # It speaks to one `/bin/sh`, because killing is then a builtin (0.7 ms, no fork, and slim images have
  # no /bin/kill), and because that shell outlives the VM: when the VM is killed, its end of the pipe
  # closes, and the shell's last act is to end every group that it was told of. The price: if this process is killed,
  # so are the Pythons it watches; their supervisors start new ones. If the shell is killed, another one is told the same.
  #
  # It also removes what a server or a pool leaves in the registry, and the directory of a server, from the moment on at
  # which that is made.
  @moduledoc false
  use GenServer

  require Logger

  alias PyPort.{Error, Registry}

  @kill_timeout 5_000

  # The pause before another shell is started, in case that none can live.
  @pause_ms 20

  # By then a directory has been made that its owner was making when it died.
  @made_ms 1_000

  # How long the number of starts is kept of a server that was not stopped in order: its supervisor may be about to start it
  # again.
  @remember_ms 60_000

  # Field 22 of /proc/PID/stat, the start time, guards against a pid that has found a new user. The name
  # in field 2 may hold anything, so fields are counted from behind its last parenthesis. Without a leader
  # the group's number is still taken by its members, or free.
  # dash refuses `kill -KILL -- -PGID`.
  #
  # When the VM has ended, Pythons that are idle end by themselves, with their `atexit` functions, and remove what they
  # and their helpers have in /dev/shm. They have a moment for that.
  @script ~S"""
  set -f
  newline='
  '
  IFS=$newline known=
  end_group() {
    if IFS= read -r stat 2>/dev/null < "/proc/$1/stat"; then
      pid=$1 start=$2
      IFS=' '
      set -- ${stat##*")" }
      IFS=$newline
      if [ $# -ge 20 ]; then
        shift 19
        [ "$start" = 0 ] || [ "$1" = "$start" ] || return 0
      fi
      # Between its fork and its setpgid a child leads no group yet: then it is alone, and killed alone.
      kill -KILL "-$pid" 2>/dev/null || kill -KILL "$pid" 2>/dev/null
      return 0
    fi
    kill -KILL "-$1" 2>/dev/null
    return 0
  }
  # The leader alone: to its children the signal would be the end.
  dump() {
    IFS= read -r stat 2>/dev/null < "/proc/$1/stat" || return 0
    pid=$1 start=$2
    IFS=' '
    set -- ${stat##*")" }
    IFS=$newline
    [ $# -ge 20 ] || return 0
    shift 19
    [ "$start" = 0 ] || [ "$1" = "$start" ] || return 0
    kill -USR2 "$pid" 2>/dev/null
    return 0
  }
  # Removes the entries that begin and end like this.
  forget() {
    rest=
    for one in $known; do
      case $one in "$1"*"$2") ;; *) rest="$rest$newline$one" ;; esac
    done
    known=$rest
  }
  while IFS=' ' read -r verb pid start dir; do
    case $verb in
      watch)
        forget "" " $dir"
        known="$known$newline$pid $start $dir" ;;
      forget) forget "" " $dir" ;;
      kill)
        end_group "$pid" "$start"
        forget "$pid $start " ""
        # The VM may have gone meanwhile.
        echo "kill $pid" 2>/dev/null ;;
      dump) dump "$pid" "$start" ;;
    esac
  done
  [ -z "$known" ] || sleep 0.8
  for one in $known; do
    pid=${one%% *} one=${one#* }
    start=${one%% *} dir=${one#* }
    # 0 for one that was just about to start.
    [ "$pid" = 0 ] || end_group "$pid" "$start"
    case $dir in */py_port-*) rm -rf "$dir" ;; esac
  done
  """

  def start_link(_options), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  # Starts a server or a pool by the callbacks of `module`: neither runs without what the application has started.
  @spec start_watched(GenServer | Supervisor, module(), map(), await :: (pid() -> :ok | {:error, Error.t()})) ::
          GenServer.on_start() | {:error, Error.t()}
  def start_watched(behaviour, module, %{name: name, wait: wait?} = options, await) do
    named = if name, do: [name: name], else: []

    with true <- Process.whereis(__MODULE__) != nil || {:error, Error.not_started()},
         {:ok, pid} when wait? <- behaviour.start_link(module, %{options | wait: false}, named) do
      case await.(pid) do
        :ok ->
          {:ok, pid}

        {:error, error} ->
          # The caller gets one answer, and no exit signal.
          Process.unlink(pid)
          behaviour.stop(pid)
          {:error, error}
      end
    end
  end

  # From now on, when `owner` ends, the group of `os_pid` is ended and `dir` removed.
  @spec watch(pid(), non_neg_integer(), non_neg_integer(), Path.t()) :: :ok
  def watch(owner, os_pid, start_time, dir) do
    GenServer.cast(__MODULE__, {:watch, owner, os_pid, start_time, dir})
  end

  # From now on, when `owner` ends, `dir` is removed: its Python is just about to start.
  @spec watch(pid(), Path.t()) :: :ok
  def watch(owner, dir), do: watch(owner, 0, 0, dir)

  # From now on, when `pool` ends, its rows in the registry are removed.
  @spec watch_pool(pid()) :: :ok
  def watch_pool(pool), do: GenServer.cast(__MODULE__, {:watch_pool, pool})

  # Ends the group of `owner` now; returns when the signal has been sent.
  @spec kill(pid()) :: :ok
  def kill(owner) do
    GenServer.call(__MODULE__, {:kill, owner}, @kill_timeout)
  catch
    # The application is going down; the shell's last act does it.
    :exit, _reason -> :ok
  end

  # Has the Python of `owner` write its stacks to its stderr. Only for one that catches SIGUSR2: any other dies of it.
  @spec dump(pid()) :: :ok
  def dump(owner), do: GenServer.cast(__MODULE__, {:dump, owner})

  @spec start_time(pos_integer()) :: non_neg_integer()
  def start_time(os_pid) do
    with {:ok, stat} <- File.read("/proc/#{os_pid}/stat"),
         fields = stat |> String.split(") ") |> List.last() |> String.split(" "),
         {start_time, _rest} <- fields |> Enum.at(19, "") |> Integer.parse() do
      start_time
    else
      _absent -> 0
    end
  end

  @impl true
  def init([]) do
    Process.flag(:trap_exit, true)
    # A reaper that was restarted takes over what its predecessor watched: the registry remembers.
    state = %{port: open(), watched: %{}, pools: %{}}
    state = Enum.reduce(Registry.all(), state, &put(&2, &1.owner, &1.os_pid, &1.start_time, &1.dir))
    {:ok, Enum.reduce(Registry.pools(), state, &put_pool/2)}
  end

  @impl true
  def handle_cast({:watch, owner, os_pid, start_time, dir}, state) do
    {:noreply, put(state, owner, os_pid, start_time, dir)}
  end

  def handle_cast({:watch_pool, pool}, state), do: {:noreply, put_pool(pool, state)}

  def handle_cast({:dump, owner}, state) do
    with %{^owner => %{os_pid: os_pid, start_time: start_time}} when os_pid > 0 <- state.watched,
         do: tell(state, "dump #{os_pid} #{start_time}")

    {:noreply, state}
  end

  def handle_cast(_unknown, state), do: {:noreply, state}

  @impl true
  def handle_call({:kill, owner}, _from, state), do: {:reply, :ok, end_group(state, owner)}
  # An unknown call must not end this process.
  def handle_call(_unknown, _from, state), do: {:reply, {:error, :unknown_call}, state}

  @impl true
  def handle_info({:DOWN, monitor, :process, owner, reason}, state) do
    case state do
      # The monitor of an owner's earlier Python has been replaced.
      %{watched: %{^owner => %{monitor: ^monitor}}} ->
        {:noreply, state |> end_group(owner) |> forget(owner, reason)}

      %{pools: %{^monitor => pool}} ->
        Registry.delete_pool(pool)
        {:noreply, %{state | pools: Map.delete(state.pools, monitor)}}

      _other ->
        {:noreply, state}
    end
  end

  def handle_info({:forget_starts, name}, state) do
    Registry.forget_starts(name)
    {:noreply, state}
  end

  def handle_info({port, {:data, _late_answer}}, %{port: port} = state), do: {:noreply, state}
  def handle_info({port, {:exit_status, _status}}, %{port: port} = state), do: {:noreply, reopen(state)}
  def handle_info({:EXIT, port, _reason}, %{port: port} = state), do: {:noreply, reopen(state)}
  # The end of a shell that has a successor.
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_message, state), do: {:noreply, state}

  defp open do
    Port.open({:spawn_executable, "/bin/sh"}, [
      :binary,
      :exit_status,
      :hide,
      {:line, 128},
      args: ["-c", @script],
      cd: "/"
    ])
  end

  # Its last act is undone by being killed; the next shell is told what it was told.
  defp reopen(state) do
    Logger.warning("PyPort: the reaper's shell has ended, another one is started")
    Process.sleep(@pause_ms)
    state = %{state | port: open()}
    for {_owner, entry} <- state.watched, do: tell_watch(state, entry)
    state
  end

  # As a message of the port's owner: a shell that has just ended is no reason to raise.
  defp tell(state, line), do: send(state.port, {self(), {:command, [line, ?\n]}})

  defp tell_watch(state, entry), do: tell(state, "watch #{entry.os_pid} #{entry.start_time} #{entry.dir}")

  defp put(state, owner, os_pid, start_time, dir) do
    with %{^owner => %{monitor: monitor, dir: old}} <- state.watched do
      Process.demonitor(monitor, [:flush])
      if old != dir, do: tell(state, "forget - - #{old}")
    end

    entry = %{os_pid: os_pid, start_time: start_time, dir: dir, monitor: Process.monitor(owner)}
    tell_watch(state, entry)
    put_in(state.watched[owner], entry)
  end

  defp put_pool(pool, state), do: put_in(state.pools[Process.monitor(pool)], pool)

  defp end_group(state, owner) do
    case state.watched do
      %{^owner => %{os_pid: os_pid, start_time: start_time}} when os_pid > 0 ->
        tell(state, "kill #{os_pid} #{start_time}")

        case await("kill #{os_pid}", state.port) do
          :ok -> state
          :ended -> state |> reopen() |> end_group(owner)
        end

      _none ->
        state
    end
  end

  defp forget(state, owner, reason) do
    {%{dir: dir, os_pid: os_pid}, state} = pop_in(state.watched[owner])
    Registry.delete(owner)
    tell(state, "forget - - #{dir}")
    # It may take its time, and others wait here for a kill.
    spawn(fn -> remove(dir, os_pid) end)
    with {:ok, name} <- Registry.take_name(owner), do: forget_starts(name, reason)
    state
  end

  # A process that is killed in a system call is gone before the call has returned: the directory may be just being made.
  defp remove(dir, 0) do
    File.rm_rf(dir)
    Process.sleep(@made_ms)
    File.rm_rf(dir)
  end

  defp remove(dir, _os_pid), do: File.rm_rf(dir)

  # Its supervisor or the application has stopped it.
  defp forget_starts(name, reason) when reason in [:normal, :shutdown], do: Registry.forget_starts(name)
  defp forget_starts(name, _reason), do: Process.send_after(self(), {:forget_starts, name}, @remember_ms)

  defp await(answer, port) do
    receive do
      {^port, {:data, {:eol, ^answer}}} -> :ok
      {^port, {:exit_status, _status}} -> :ended
      {:EXIT, ^port, _reason} -> :ended
    after
      @kill_timeout ->
        Logger.error("PyPort: the reaper's shell did not answer within #{@kill_timeout} ms")
        :ok
    end
  end
end
