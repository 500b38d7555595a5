"""Executors run requests. Each has `run`, `cancel` and, for streams, `credit`."""
