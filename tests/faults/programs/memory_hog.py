"""Keeps what it makes, without an end."""

kept = []
while True:
    kept.append(bytearray(16 * 2**20))
