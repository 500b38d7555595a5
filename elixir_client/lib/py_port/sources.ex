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

  # The Python files in and below some directories, each with what changes when it is written.
  @spec state([Path.t()]) :: %{optional(Path.t()) => term()}
  def state(directories), do: directories |> Enum.flat_map(&files/1) |> Map.new()

  defp files(directory) do
    for name <- ls(directory),
        not String.starts_with?(name, ".") and name not in @skipped,
        path = Path.join(directory, name),
        {:ok, stat} <- [File.stat(path, time: :posix)],
        file <- if(stat.type == :directory, do: files(path), else: file(path, stat)),
        do: file
  end

  defp file(path, stat),
    do: if(Path.extname(path) == ".py", do: [{path, {stat.mtime, stat.size, stat.inode}}], else: [])

  defp ls(directory) do
    case File.ls(directory) do
      {:ok, names} -> names
      {:error, _gone} -> []
    end
  end
end
