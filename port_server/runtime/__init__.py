"""Running people's code. Knows nothing of frames or file descriptors, nothing of `protocol`."""
