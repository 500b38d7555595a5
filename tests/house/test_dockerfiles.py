"""The Dockerfiles of docs/docker keep the rules that docs/deployment.md gives for them."""

import re

import pytest
from dockerfile import DOCKER, instructions, stages, variables

WORDS = {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "CMD"}
INSTALLS = re.compile(r"\b(apt-get install|apk add)\b(.*?)(&&|$)")
TOOLS = {"gcc", "libc6-dev", "musl-dev", "python3-dev", "erlang-dev", "elixir", "uv"}


@pytest.fixture(params=["Dockerfile.debian", "Dockerfile.alpine"])
def path(request):
    return DOCKER / request.param


def packages(stage):
    """The packages that a stage installs."""
    words = (
        word
        for instruction in stage
        for match in INSTALLS.finditer(instruction.rest)
        for word in match.group(2).split()
    )
    return {word for word in words if not word.startswith("-")}


def test_every_line_has_its_reason(path):
    """Each instruction stands under a comment that says why."""
    for instruction in instructions(path):
        assert instruction.word in WORDS
        assert len(instruction.comment) > 20, instruction


def test_both_stages_have_one_base_of_a_fixed_version(path):
    """One libc and one Python for build and run, tomorrow as today."""
    build, run = stages(path)
    image = build[0].rest.removesuffix(" AS build")
    assert image == run[0].rest
    assert re.fullmatch(r"[a-z]+:(?!latest)[\w.-]+", image)


def test_what_is_fetched_while_building_is_kept_in_cache_mounts(path):
    """The system's packages, Python's, our wheel: nothing twice, and nothing in a layer."""
    build, _run = stages(path)
    for instruction in build:
        if INSTALLS.search(instruction.rest) or "py_port.sync" in instruction.rest:
            assert any(flag.startswith("--mount=type=cache") for flag in instruction.flags), (
                instruction
            )
    (sync,) = [instruction for instruction in build if "py_port.sync" in instruction.rest]
    targets = " ".join(sync.flags)
    assert "/root/.cache/uv" in targets
    assert "/root/.cache/py_port" in targets
    assert "--frozen" in sync.rest


def test_python_is_built_before_the_code_is_copied(path):
    """A change of code does not build Python again."""
    build, _run = stages(path)
    order = [f"{instruction.word} {instruction.rest}" for instruction in build]
    sync = next(i for i, line in enumerate(order) if "py_port.sync" in line)
    assert (
        order.index("COPY priv priv")
        < sync
        < order.index("COPY lib lib")
        < order.index("RUN mix release")
    )


def test_the_image_that_is_shipped_has_the_interpreter_and_no_tools(path):
    """The Python of the first stage at the same path, no compiler, no uv, no root."""
    build, run = stages(path)
    assert "python3" in packages(build)
    assert "python3" in packages(run)
    assert not packages(run) & TOOLS
    assert "UV_PYTHON" in variables(next(i for i in build if i.word == "ENV"))
    (user,) = [instruction.rest for instruction in run if instruction.word == "USER"]
    assert user not in ("root", "0")
    (command,) = [instruction.rest for instruction in run if instruction.word == "CMD"]
    assert command.startswith("[")


def test_apt_leaves_nothing_and_brings_nothing_extra(path):
    """No recommended packages; lists are removed where no cache mount keeps them away."""
    for instruction in instructions(path):
        if "apt-get install" in instruction.rest:
            assert "--no-install-recommends" in instruction.rest
            assert instruction.flags or "rm -rf /var/lib/apt/lists" in instruction.rest
