"""Runs user code. Independent of frames, of the port and of `protocol`."""
