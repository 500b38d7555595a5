"""The wire: bytes in, frames and messages out. No I/O, no clock, no thread, no `runtime`."""
