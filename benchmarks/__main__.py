"""Every performance figure of the project, each beside its peer: ``python -m benchmarks`` or ``make bench``.

Each benchmark is a process of its own, so that what one loads is not measured by the next. On a machine that does
other things the figures say more about those.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("start", "push", "ssh", "bench_harness", "overhead", "cpu", "detection", "vta_simulator", "vta")


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    failed = []
    for name in BENCHMARKS:
        print(f"\n== benchmarks/{name}.py", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=root).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
