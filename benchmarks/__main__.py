"""Every performance figure of the project, each beside its peer: ``python -m benchmarks`` or ``make bench``.

Each benchmark is a process of its own, so that what one loads is not measured by the next. On a machine that does
other things the figures say more about those.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("start.py", "push.py", "bench_harness.py", "vta_simulator.py", "vta.py")


def main() -> int:
    folder = Path(__file__).parent
    failed = []
    for script in SCRIPTS:
        print(f"\n== benchmarks/{script}", flush=True)
        if subprocess.run([sys.executable, str(folder / script)]).returncode:
            failed.append(script)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
