"""A bare Python port that writes as many frames as it is asked for, one write each.

The question is a frame that holds a decimal number; the frames are as long as the items of a stream
of small integers.
"""

import os

ITEM = (24).to_bytes(4, "big") + bytes(24)

while header := os.read(0, 4):
    for _ in range(int(os.read(0, int.from_bytes(header, "big")))):
        os.write(1, ITEM)
