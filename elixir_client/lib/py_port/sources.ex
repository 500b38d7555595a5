defmodule PyPort.Sources do
  # The Python source of the running applications: their directories `priv/python`, which stand on `sys.path`, and the state of the
  # files in directories.
  @moduledoc false

  # Not source of the application's own.
  @skipped ~w(_build deps node_modules __pycache__)

  # The directories `priv/python` of the loaded applications. That of PyPort itself is the server, which stands last on
  # `sys.path` of its own Pythons: see PyPort.Server.Launch.
  @spec directories() :: [Path.t()]
  def directories do
    for {app, _description, _version} <- Application.loaded_applications(),
        app != :py_port,
        priv = :code.priv_dir(app),
        is_list(priv),
        directory = Path.join(List.to_string(priv), "python"),
        File.dir?(directory),
        do: directory
  end

  # PYTHONPATH with these directories before those that it has.
  @spec path(String.t() | nil | false) :: String.t() | nil | false
  def path(given) do
    case directories() do
      [] -> given
      own -> Enum.join(own ++ if(given, do: [given], else: []), ":")
    end
  end

  # The Python files in and below some directories, each with what changes when it is written. Links are followed, and each
  # directory is read once, since links may lead back to it.
  @spec state([Path.t()]) :: %{optional(Path.t()) => term()}
  def state(directories) do
    {files, _seen} = Enum.reduce(directories, {%{}, %{}}, &add/2)
    files
  end

  defp add(path, {files, seen}) do
    case File.stat(path, time: :posix) do
      {:ok, %{type: :directory} = stat} ->
        place = {stat.major_device, stat.inode}
        names = if is_map_key(seen, place), do: [], else: names(ls(path))
        names |> Enum.map(&Path.join(path, &1)) |> Enum.reduce({files, Map.put(seen, place, true)}, &add/2)

      {:ok, stat} ->
        file? = Path.extname(path) == ".py"
        {if(file?, do: Map.put(files, path, {stat.mtime, stat.size, stat.inode}), else: files), seen}

      # Gone, or a link that leads nowhere.
      {:error, _reason} ->
        {files, seen}
    end
  end

  # A virtual environment holds what is installed.
  defp names(all), do: if("pyvenv.cfg" in all, do: [], else: Enum.reject(all, &skipped?/1))

  defp skipped?(name), do: String.starts_with?(name, ".") or name in @skipped

  defp ls(directory) do
    case File.ls(directory) do
      {:ok, names} -> names
      {:error, _gone} -> []
    end
  end
end
