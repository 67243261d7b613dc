"""A stop that a library's `__del__` swallows comes again, and prints nothing."""

import subprocess
import sys

PROGRAM = """
import os, signal, time
from netkin.errors import Stopped
from netkin.jobs.signals import quiet_stops

def stop(number, frame):
    raise Stopped(128 + number)

class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

signal.signal(signal.SIGTERM, stop)
quiet_stops()
try:
    library = Library()
    del library
    time.sleep(20)
except Stopped as stopped:
    raise SystemExit(stopped.code)
"""


def test_a_stop_in_a_destructor_comes_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
