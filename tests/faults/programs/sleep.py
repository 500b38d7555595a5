"""Waits for nothing in particular."""

import time

time.sleep(1000)
