"""How a process of a distributed test ends."""

import os
import sys
import time
from pathlib import Path

from torch import distributed as dist


def leave():
    """End this process when all have come here: everything is written by now.

    `leave_group` joins the threads of gloo where nothing holds the group any more; a worker of tests holds all sorts of
    things. A thread that still has a tensor of the last sum when the interpreter ends asks for a lock that is no more,
    and aborts the process, which the launcher counts as failed. An abort before this call still fails the test, and
    results are read from a file that only a finished run has written.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def gloo_threads():
    """Threads of this process in which gloo works."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            if "gloo" in (task / "comm").read_text():
                found.add(task.name)
        except OSError:  # it has just ended
            continue
    return found


def threads_end(before=frozenset(), seconds=120.0):
    """Whether all such threads but those of ``before`` end; one that was joined may be listed a moment longer."""
    limit = time.monotonic() + seconds
    while not gloo_threads() <= before:
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True
