"""Emulated boards for a person: ``sudo .venv/bin/python tests/boards/emulate.py FOLDER [arm64|armhf|amd64]``.

Boots a board whose disk and keys lie in FOLDER (a new one, or one of an earlier board, which then boots again with
what is on it), prints how it is put into an inventory, and pulls the plug at Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration"), str(HERE.parents[1])]

from board_hosts import Board  # noqa: E402
from board_roots import ADMIN, ARCHITECTURES, missing, root  # noqa: E402

TARGETS = {"arm64": "arm64", "armhf": "armv7", "amd64": "x86"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Boards without boards, behind SSH at an address of their own.")
    parser.add_argument("folder", type=Path, help="where its disk and its keys lie")
    parser.add_argument("architecture", nargs="?", choices=ARCHITECTURES, default="arm64")
    parser.add_argument("--name", default="", help="its name (default: that of the folder)")
    given = parser.parse_args()
    kind = ARCHITECTURES[given.architecture]
    reason = missing([kind])
    if reason:
        print(reason, file=sys.stderr)
        return 1
    folder = given.folder.absolute()
    name = given.name or folder.name
    print(f"the root file system of {kind.debian} (made now if it is not there yet, which takes minutes) …")
    board = Board(kind, root(kind), folder, name)
    # Whoever became root for this is the one who logs in.
    uid, gid = int(os.environ.get("SUDO_UID", 0)), int(os.environ.get("SUDO_GID", 0))
    board.start()
    try:
        for path in (folder, board.client_key, board.known_hosts, folder / "ssh_config"):
            os.chown(path, uid, gid)
        line = ["fleet", "devices", "add", name, "--target", TARGETS[given.architecture]]
        line += ["--ssh", f"{ADMIN}@{board.address}", "--ssh-identity", str(board.client_key)]
        line += ["--ssh-known-hosts", str(board.known_hosts), "--link", "ssh"]
        print(
            f"{name} is up at {board.address}; its log is {board.log}\n\n{shlex.join(line)}\n\nCtrl-C pulls its plug."
        )
        sys.stdout.flush()
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except KeyboardInterrupt:
        pass
    finally:
        board.stop()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())
