"""The console script ``vta``."""

from __future__ import annotations

import sys


def main() -> None:
    print("vta: the VTA tools are not part of this version yet", file=sys.stderr)
    sys.exit(2)
