"""A worker process: one loaded model, answering the agent's calls one after the other.

Whatever the model, its runtime or its driver does (crash, hang, leak), it does here and not in the agent.
Started as ``python -m agent.worker FD PARENT``: the inherited socket, and the process id of the agent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """End this process when the agent ends, however that happens and whatever this process is doing then."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # The agent died between starting this process and the call above.
        os._exit(1)


def limit_damage() -> None:
    """No core files on a small disk, and the kernel's out-of-memory killer takes a worker before the agent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text("800")


def main() -> None:
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    die_with_parent(parent)
    limit_damage()
    # Imported after the parent's death is provided for: this takes a while.
    from agent.worker_calls import Worker

    with socket.socket(fileno=descriptor) as connection:
        Worker().serve(connection)


if __name__ == "__main__":
    main()
