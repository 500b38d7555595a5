"""Running people's code. Knows nothing of frames or of the port, nothing of `protocol`."""
