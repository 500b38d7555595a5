"""What a call names, found while others import it."""

import sys
import threading

import pytest

from port_server.runtime.targets import Target

# Says when somebody has asked for a name that is not there yet, and goes on when it is let.
SLOW = """
import sys
hello = sys.modules["{name}_control"]

def __getattr__(name):
    hello.asked.set()
    raise AttributeError(name)

hello.begun.set()
assert hello.go_on.wait(30)

def answer():
    return 42
"""


class Control:
    def __init__(self):
        self.begun, self.asked, self.go_on = (threading.Event() for _ in range(3))


def test_a_module_that_another_thread_is_importing_is_waited_for(tmp_path, monkeypatch):
    """A call waits for the import as `import` itself does; it does not miss what comes later."""
    name, control, found = "slowly_imported", Control(), []
    (tmp_path / f"{name}.py").write_text(SLOW.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, f"{name}_control", control)
    importing = threading.Thread(target=__import__, args=(name,))
    importing.start()
    assert control.begun.wait(30)

    def find():
        try:
            found.append(Target(f"{name}:answer").find()())
        except AttributeError as error:
            found.append(error)

    calling = threading.Thread(target=find)
    calling.start()
    assert control.asked.wait(30)
    control.go_on.set()
    calling.join(30)
    importing.join(30)
    monkeypatch.delitem(sys.modules, name)
    assert found == [42]


def test_what_a_module_lacks_is_pythons_own_error():
    """An AttributeError that names it, at once."""
    with pytest.raises(AttributeError, match="no_such_name"):
        Target("math:no_such_name").find()
