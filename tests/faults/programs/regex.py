"""A pattern that tries 2**60 ways to fail."""

import re

re.match(r"(a+)+$", "a" * 60 + "b")
