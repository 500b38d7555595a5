"""Asynchronous code that forgets to be."""

import asyncio
import time

await asyncio.sleep(0)
time.sleep(1000)
