"""Reading the frames of a thread."""

import sys

from port_server.runtime import failure
from port_server.runtime.frames import imported_name

PROBE = """
import sys
from port_server.runtime.frames import imported_name
name = imported_name(sys._getframe())
"""


def probed(tmp_path, monkeypatch, name, file):
    """Give what an import that code of `file` has asked for is named, by that import itself."""
    (tmp_path / f"{name}.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(f"import {name}", file, "exec"), {})
    return sys.modules.pop(name).name


def test_an_import_is_named_by_what_the_code_asked_for(tmp_path, monkeypatch):
    """The outermost one is."""
    (tmp_path / "outer_probe.py").write_text("import inner_probe")
    assert imported_name(sys._getframe()) is None
    assert probed(tmp_path, monkeypatch, "lone_probe", "<code>") == "lone_probe"
    (tmp_path / "inner_probe.py").write_text(PROBE)
    exec("import outer_probe", {})
    assert sys.modules.pop("inner_probe").name == "outer_probe"


def test_what_is_imported_to_describe_a_failure_is_not_named(tmp_path, monkeypatch):
    """The code of the request has ended: traceback is the server's own wish."""
    assert probed(tmp_path, monkeypatch, "described_probe", failure.__file__) is None
