"""Dockerfiles, read as far as ours need it: instructions, their comments and flags."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

DOCKER = Path(__file__).parents[1] / "docs/docker"


class Instruction(NamedTuple):
    word: str
    flags: list[str]
    rest: str
    comment: str


def instructions(path):
    """Give the instructions of a Dockerfile in order."""
    found, comment = [], []
    lines = iter(path.read_text().splitlines())
    for line in lines:
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif line.strip():
            whole = line
            while whole.endswith("\\"):
                whole = whole[:-1] + next(lines)
            word, rest = re.sub(r"\s+", " ", whole).split(" ", 1)
            flags = []
            while rest.startswith("--"):
                flag, rest = rest.split(" ", 1)
                flags.append(flag)
            found.append(Instruction(word, flags, rest, " ".join(comment)))
            comment = []
        else:
            comment = []
    return found


def stages(path):
    """Give the stages of a Dockerfile, each a list of instructions that begins with its FROM."""
    found = []
    for instruction in instructions(path):
        if instruction.word == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def variables(instruction):
    """Give what an ENV sets."""
    return dict(word.split("=", 1) for word in shlex.split(instruction.rest))
