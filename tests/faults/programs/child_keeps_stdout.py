"""A child that has inherited every fd that can be inherited, in a session of its own, and lives on."""

import os
import subprocess

child = subprocess.Popen(["sleep", "20"], close_fds=False, start_new_session=True)
import builtins

builtins.child = child  # nobody shall wait for it
child.pid
