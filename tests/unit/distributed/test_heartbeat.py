"""The heartbeat of a rank ends before Python exits: a thread that returns from the store later aborts the process."""

import subprocess
import sys

PROGRAM = """
import atexit, threading
from torch.distributed import TCPStore
from codyra_llm.distributed.heartbeat import Heartbeat

atexit.register(lambda: print("beats on" if threading.active_count() > 1 else "ended"))  # what comes first runs last
heartbeat = Heartbeat(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), rank=0, size=1)
print("beats" if threading.active_count() > 1 else "silent")
"""


def test_the_beat_ends_before_python_does() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["beats", "ended"]), done.stderr
