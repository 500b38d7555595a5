"""The I/O shell: file descriptors, signals, the loop. What is done with a request: `runtime`."""
