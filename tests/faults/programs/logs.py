"""Logs without an end, to several handlers with locks."""

import logging

log = logging.getLogger("busy")
while True:
    log.warning("line %s", "x" * 100)
