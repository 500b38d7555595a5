"""Takes no for an answer from nobody."""

while True:
    try:
        while True:
            pass
    except BaseException:
        pass
