defmodule PyPort.Wire do
  # Frames <-> messages; pure. No process, no port, no clock: docs/protocol.md in code.
  #
  # A frame that belongs to a request begins with bytes that do not depend on its contents: version,
  # tuple header, a SMALL_ATOM_UTF8 tag and the id as a BINARY. The owner of the port routes on those
  # bytes alone; only the caller, in its own process and heap, ever builds the terms of its reply.
  @moduledoc false

  alias PyPort.Wire.{Behind, Skip, Unknown}

  @protocol_version 1

  @version 131
  @small_tuple 104
  @small_atom_utf8 119
  @binary 109
  @integer 98
  @map 116
  @empty_list 106
  @small_integer 97
  @new_float 70

  # Tags of frames, as SMALL_ATOM_UTF8, and what stands before an id, a BINARY of eight bytes.
  @ok "w\x02ok"
  @yield "w\x05yield"
  @id "m\0\0\0\b"

  # From here on a copy costs more than the way around it.
  @small_bytes 1_024

  @type id :: <<_::64>>
  # An `invoke` outside any request has "" in the place of an id.
  @type maybe_id :: binary()
  @type routed ::
          {:reply
           | :reply_with_objects
           | :yield
           | :yield_with_objects
           | :output
           | :pong
           | :progress
           | :running, id()}
          | {:invoke, maybe_id(), call_id :: id()}
          | :hello
          | :goodbye
          | :log
          | :send
          | :stderr
          | :heartbeat
          | :other

  @spec protocol_version() :: pos_integer()
  def protocol_version, do: @protocol_version

  # --- to Python ------------------------------------------------------------------------------

  # The options of nearly every request are only a deadline; but for the number they are the same bytes.
  # Taken from the BEAM itself, since OTP 25 writes the key as ATOM_EXT, OTP 26 as SMALL_ATOM_UTF8.
  @least_integer 256
  @largest_integer 0x7FFFFFFF
  @deadline_only (
                   encoded = :erlang.term_to_binary(%{deadline_ms: @largest_integer})
                   binary_part(encoded, 1, byte_size(encoded) - 5)
                 )

  @eval <<@version, @small_tuple, 5, @small_atom_utf8, 4, "eval", @binary, 8::32>>
  @call <<@version, @small_tuple, 6, @small_atom_utf8, 4, "call", @binary, 8::32>>

  # A small request is put together by hand, which takes half the time of one `term_to_binary` for all of it.
  @spec request(:eval | :call, id(), tuple(), small? :: boolean()) :: iodata()
  def request(:eval, id, {opts, code, globals}, true) when is_binary(code) do
    opts = small(opts)
    globals = small(globals)

    <<@eval, id::binary-size(8), opts::binary, @binary, byte_size(code)::32, code::binary, globals::binary>>
  end

  def request(:call, id, {opts, target, args, kwargs}, true) when is_binary(target) do
    opts = small(opts)
    args = small(args)
    kwargs = small(kwargs)

    <<@call, id::binary-size(8), opts::binary, @binary, byte_size(target)::32, target::binary, args::binary,
      kwargs::binary>>
  end

  # One call into C encodes the whole body; its first three bytes (version, tuple header, arity) make room for the
  # prefix that this protocol fixes. OTP 25 would write the tag as ATOM_EXT, OTP 26 as SMALL_ATOM_UTF8: written by
  # hand it is the same bytes everywhere.
  def request(:eval, id, {_opts, _code, _globals} = body, small?) do
    [<<@version, @small_tuple, 3, rest::binary>> | tail] = encode(body, small?)
    [<<@eval, id::binary-size(8)>>, rest | tail]
  end

  def request(:call, id, {_opts, _target, _args, _kwargs} = body, small?) do
    [<<@version, @small_tuple, 4, rest::binary>> | tail] = encode(body, small?)
    [<<@call, id::binary-size(8)>>, rest | tail]
  end

  defp small(%{deadline_ms: ms} = opts)
       when map_size(opts) == 1 and is_integer(ms) and ms in @least_integer..@largest_integer,
       do: <<@deadline_only::binary, ms::32>>

  defp small(map) when map_size(map) == 0, do: <<@map, 0::32>>
  defp small([]), do: <<@empty_list>>

  defp small(values) do
    <<@version, encoded::binary>> = :erlang.term_to_binary(values)
    encoded
  end

  # `term_to_iovec` leaves large binaries where they are instead of copying them, and costs 370 ns more
  # than `term_to_binary`, which is much for a tiny request; so a look at the values comes first.
  defp encode(body, true), do: [:erlang.term_to_binary(body)]
  defp encode(body, false), do: :erlang.term_to_iovec(body)

  # Whether these are few values, and all of them plain: then `term_to_binary` is the faster one, and there is
  # no function and no handle to be found among them.
  @spec small?(list() | map()) :: boolean()
  def small?([]), do: true
  def small?([one]), do: scalar?(one)
  def small?([one, two]), do: scalar?(one) and scalar?(two)
  def small?(values) when is_list(values), do: false
  def small?(values) when map_size(values) == 0, do: true
  def small?(values) when map_size(values) < 8, do: values |> Map.values() |> Enum.all?(&scalar?/1)
  def small?(_many), do: false

  defp scalar?(value) when is_binary(value), do: byte_size(value) <= @small_bytes
  defp scalar?(value), do: is_number(value) or is_atom(value)

  @spec cancel(id()) :: binary()
  def cancel(id), do: <<@version, @small_tuple, 2, "w\x06cancel", @id, id::binary-size(8)>>

  # Takes back a request that has not begun.
  @spec recall(id()) :: binary()
  def recall(id), do: <<@version, @small_tuple, 2, "w\x06recall", @id, id::binary-size(8)>>

  # An integer of the protocol is written in four bytes, which hold up to 2 GiB; more is as good as that.
  @largest_count 0x7FFFFFFF

  @spec credit(id(), pos_integer()) :: binary()
  def credit(id, items) do
    count = min(items, @largest_count)
    <<@version, @small_tuple, 3, "w\x06credit", @id, id::binary-size(8), @integer, count::32>>
  end

  # For a request's output, or, with the id of no request, for log records and messages.
  @spec ack(maybe_id(), non_neg_integer()) :: binary()
  def ack(id, bytes) do
    count = min(bytes, @largest_count)
    <<@version, @small_tuple, 3, "w\x03ack", @binary, byte_size(id)::32, id::binary, @integer, count::32>>
  end

  @spec answer(call_id :: id(), {:ok, term()} | {:error, map()}) :: iodata()
  def answer(call_id, outcome) do
    [<<@version, body::binary>> | tail] = :erlang.term_to_iovec(outcome)

    [<<@version, @small_tuple, 3, "w\x06answer", @id, call_id::binary-size(8)>>, body | tail]
  end

  # A frame of so many bytes stands there in the shared memory; with 0 bytes the slot is free.
  @spec segment(non_neg_integer(), non_neg_integer(), non_neg_integer(), non_neg_integer()) :: binary()
  def segment(slot, generation, offset, bytes),
    do: "segment" |> message([slot, generation, offset, bytes]) |> IO.iodata_to_binary()

  @spec open_session(id(), String.t()) :: iodata()
  def open_session(id, name), do: message("open_session", [id, name])

  @spec close_session(String.t()) :: iodata()
  def close_session(name), do: message("close_session", [name])

  @spec release([pos_integer()]) :: iodata()
  def release(object_ids), do: message("release", [object_ids])

  @spec init(map()) :: iodata()
  def init(options), do: message("init", [@protocol_version, options])

  @spec shutdown(non_neg_integer()) :: iodata()
  def shutdown(grace_ms), do: message("shutdown", [grace_ms])

  @spec ping(id()) :: iodata()
  def ping(id), do: message("ping", [id])

  @spec stacks(id()) :: iodata()
  def stacks(id), do: message("stacks", [id])

  defp message(tag, terms) do
    arity = length(terms) + 1

    [
      <<@version, @small_tuple, arity, @small_atom_utf8, byte_size(tag), tag::binary>>
      | Enum.map(terms, fn term ->
          <<@version, body::binary>> = :erlang.term_to_binary(term)
          body
        end)
    ]
  end

  # --- from Python ----------------------------------------------------------------------------

  # The arity tells whether the ids of handles stand behind the value.
  @spec route(binary()) :: routed()
  def route(<<@version, @small_tuple, arity, @ok, @id, id::binary-size(8), _::binary>>),
    do: if(arity == 3, do: {:reply, id}, else: {:reply_with_objects, id})

  def route(<<@version, @small_tuple, arity, @yield, @id, id::binary-size(8), _::binary>>),
    do: if(arity == 3, do: {:yield, id}, else: {:yield_with_objects, id})

  def route(<<@version, @small_tuple, arity, "w\x05error", @id, id::binary-size(8), _::binary>>),
    do: if(arity == 3, do: {:reply, id}, else: {:reply_with_objects, id})

  def route(<<@version, @small_tuple, _arity, "w\x06output", @id, id::binary-size(8), _::binary>>),
    do: {:output, id}

  def route(
        <<@version, @small_tuple, _arity, "w\x06invoke", @binary, size::32, id::binary-size(size), @id,
          call_id::binary-size(8), _::binary>>
      ),
      do: {:invoke, id, call_id}

  def route(<<@version, @small_tuple, _arity, "w\x04pong", @id, id::binary-size(8), _::binary>>),
    do: {:pong, id}

  def route(<<@version, @small_tuple, 3, "w\bprogress", @id, id::binary-size(8), _::binary>>),
    do: {:progress, id}

  def route(<<@version, @small_tuple, 2, "w\arunning", @id, id::binary-size(8)>>), do: {:running, id}
  def route(<<@version, @small_tuple, _arity, "w\x03log", _::binary>>), do: :log
  def route(<<@version, @small_tuple, _arity, "w\x04send", _::binary>>), do: :send
  def route(<<@version, @small_tuple, 2, "w\x06stderr", _::binary>>), do: :stderr
  def route(<<@version, @small_tuple, _arity, "w\theartbeat", _::binary>>), do: :heartbeat
  def route(<<@version, @small_tuple, _arity, "w\x05hello", _::binary>>), do: :hello
  def route(<<@version, @small_tuple, _arity, "w\agoodbye", _::binary>>), do: :goodbye
  def route(_frame), do: :other

  # Whether a reply says that its request was cancelled. Of an error Python writes the kind first.
  @spec cancelled?(binary()) :: boolean()
  def cancelled?(
        <<@version, @small_tuple, _arity, "w\x05error", @id, _id::binary-size(8), ?t, _pairs::32,
          "w\x04kindw\tcancelled", _::binary>>
      ),
      do: true

  def cancelled?(_frame), do: false

  # The ids of the handles in a frame without a reader (which has died, or could not read it):
  # found by walking over the bytes, because the terms themselves may be huge, or refused by `:safe`.
  @spec object_ids(binary()) :: [pos_integer()]
  def object_ids(<<@version, @small_tuple, arity, rest::binary>>) when arity > 3 do
    with {:ok, list} <- Skip.terms(rest, arity - 1),
         {:ok, behind} <- Skip.terms(list, 1),
         list = binary_part(list, 0, byte_size(list) - byte_size(behind)),
         {:ok, ids} when is_list(ids) <- decode(<<@version, list::binary>>) do
      # Functions have negative ones.
      Enum.filter(ids, &(is_integer(&1) and &1 > 0))
    else
      _unreadable -> []
    end
  end

  def object_ids(_frame), do: []

  # The request to which a log record belongs, which stands somewhere among its metadata.
  @spec log_request(binary()) :: id() | nil
  def log_request(<<@version, @small_tuple, 4, rest::binary>>) do
    case Skip.terms(rest, 3) do
      {:ok, <<@map, size::32, pairs::binary>>} -> find_request(pairs, size)
      _unreadable -> nil
    end
  end

  def log_request(_frame), do: nil

  defp find_request(_pairs, 0), do: nil

  defp find_request(
         <<@small_atom_utf8, 7, "request", @binary, 8::32, id::binary-size(8), _::binary>>,
         _left
       ),
       do: id

  defp find_request(pairs, left) do
    case Skip.terms(pairs, 2) do
      {:ok, rest} -> find_request(rest, left - 1)
      :error -> nil
    end
  end

  # The value of a reply or of an item that is a scalar without handles behind it, read by hand: that is a
  # quarter of what `binary_to_term` takes, and a binary, however large, stays where it is instead of being copied.
  @spec scalar(binary()) :: {:ok, nil | boolean() | number() | binary()} | :other
  def scalar(<<@version, @small_tuple, 3, @ok, @id, _id::64, value::binary>>), do: read_scalar(value)
  def scalar(<<@version, @small_tuple, 3, @yield, @id, _id::64, value::binary>>), do: read_scalar(value)
  def scalar(_frame), do: :other

  defp read_scalar(<<@small_integer, value>>), do: {:ok, value}
  defp read_scalar(<<@integer, value::signed-32>>), do: {:ok, value}
  defp read_scalar(<<@binary, size::32, value::binary-size(size)>>), do: {:ok, value}
  defp read_scalar(<<@new_float, value::float>>), do: {:ok, value}
  defp read_scalar(<<@small_atom_utf8, 3, "nil">>), do: {:ok, nil}
  defp read_scalar(<<@small_atom_utf8, 4, "true">>), do: {:ok, true}
  defp read_scalar(<<@small_atom_utf8, 5, "false">>), do: {:ok, false}
  defp read_scalar(_value), do: :other

  # `:safe` makes an atom that this VM has never met an error of this one reply instead of a leak;
  # `:used` shows where the term ends and its large data begins.
  @spec decode(binary()) :: {:ok, term()} | {:error, String.t()}
  def decode(frame) do
    case :erlang.binary_to_term(frame, [:safe, :used]) do
      {term, used} when used == byte_size(frame) -> {:ok, term}
      {term, used} -> with_data(term, binary_part(frame, used, byte_size(frame) - used))
    end
  rescue
    ArgumentError -> {:error, unreadable(frame)}
  end

  defp with_data(term, data) do
    case Behind.put(term, data) do
      {term, size} when size == byte_size(data) -> {:ok, term}
      {_term, size} -> {:error, "#{byte_size(data) - size} bytes stand behind the term"}
    end
  end

  @spec decode_hello(binary()) :: {:ok, version :: term(), info :: map()} | :error
  def decode_hello(frame) do
    case decode(frame) do
      {:ok, {:hello, version, %{} = info}} -> {:ok, version, info}
      _other -> :error
    end
  end

  # The atoms that the server's own messages consist of: standing here, they are known to this VM, and
  # `:safe` lets them in.
  @spec vocabulary() :: [atom()]
  def vocabulary do
    # The last three: floats that Erlang does not have.
    [:ok, :error, :output, :stdout, :stderr, :pong, :log, :goodbye, :shutdown, :sigterm, :sigint] ++
      [:hello, :python, :implementation, :libc, :machine, :codec, :server_version, :features] ++
      [:shared_memory, :fd, :token, :stride, :slots, :shm_bytes, :shm_frames] ++
      [:executable, :port_fd, :eval, :call, :ping, :cancel_queued, :cancel, :logging, :async, :stream] ++
      [:yield, :invoke, :send, :heartbeat, :sequence, :monotonic_ms, :idle, :busy, :state, :running] ++
      [:running_ms, :queue, :rss_bytes, :objects, :sessions, :tasks, :calls, :streams, :threads] ++
      [
        :progress,
        :done,
        :total,
        :kind,
        :type,
        :message,
        :traceback,
        :frames,
        :begun,
        :dropped,
        :attributes,
        :value,
        :file,
        :line,
        :function,
        :source
      ] ++
      [:os_pid, :uptime_ms, :requests, :open, :importing, :blocking, :code] ++
      [:debug, :info, :warning, :critical, :logger, :request] ++
      [PyPort.Object, :server, :token, :id, :repr, PyPort.Bytes, :data] ++
      [PyPort.Tensor, :shape, :meta, :s, :u, :f, :bf, :c, :unit, :bool, :datetime64, :timedelta64] ++
      [PyPort.Table, :format, :arrow_stream] ++
      [:infinity, :neg_infinity, :nan]
  end

  # Only the bytes are looked at: to read the term without `:safe` would make the atoms that `:safe` keeps out.
  defp unreadable(frame) do
    case Unknown.find(frame) do
      {:struct, module, path} ->
        name = String.trim_leading(module, "Elixir.")

        "#{path} is a struct of the module #{name}, which is not loaded here: add the library that defines it to the " <>
          "dependencies in mix.exs, or load the module before (Code.ensure_loaded/1)"

      {:atom, name, path} ->
        "#{path} is the atom #{inspect(name)}, which this node has never met: return a str instead of an Atom, or " <>
          "write the atom in Elixir code that is loaded before"

      nil ->
        "Python sent a term of #{byte_size(frame)} bytes that cannot be read here"
    end
  end
end
