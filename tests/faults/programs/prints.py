"""Prints without an end."""

while True:
    print("a line of some length, and another, and another")
