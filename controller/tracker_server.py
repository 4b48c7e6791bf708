"""The process behind ``fleet tracker start``: TVM's tracker, and nothing else, until it is told to end.

TVM's own command runs the same tracker in a second process, and loads torch twice where it is installed.
"""

from __future__ import annotations

import sys


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tvm.rpc.tracker import PopenTrackerServerState

    # Ends with a traceback in the log when the port is taken: the one who started it reads that.
    state = PopenTrackerServerState(host, port=port, port_end=port + 1)
    state.thread.join()


if __name__ == "__main__":
    main()
