"""Changes what belongs to the whole process."""

import os
import sys

os.chdir("/")
os.environ.clear()
sys.path.clear()
sys.argv.clear()
sys.stdout = sys.stderr = sys.stdin = None
"changed"
