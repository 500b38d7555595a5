"""The I/O shell: file descriptors, signals, the loop. `runtime` runs the code of a request."""
