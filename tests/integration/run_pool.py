"""Starts a thread pool as a worker does, and prints (JSON) where each of its threads may run, by the kernel's account.

python run_pool.py THREADS PROCESSOR...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from targets.base import FleetError
from targets.cores import cpu_list


def allowed() -> dict[str, list[int]]:
    """The processors that each thread of this process may run on, by its number."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "Cpus_allowed_list":
                found[task.name] = cpu_list(value)
    return found


def main() -> None:
    threads, *processors = (int(argument) for argument in sys.argv[1:])
    os.sched_setaffinity(0, processors)
    from targets.cpu.pool import import_runtime, start_pool

    try:
        import_runtime(threads)
        before = allowed()
        start_pool(threads)
        after = allowed()
        # A second model in the same process has the same pool.
        start_pool(threads)
        from tvm.runtime import num_threads

        again, count = allowed(), num_threads()
    except FleetError as error:
        print(json.dumps({"refused": error.message, "code": error.code}))
        return
    caller = str(os.getpid())
    print(
        json.dumps(
            {
                "caller": after[caller],
                "started": [cpus for task, cpus in after.items() if task not in before],
                "others": [cpus for task, cpus in after.items() if task in before and task != caller],
                "same": again == after,
                "threads": count,
            }
        )
    )


if __name__ == "__main__":
    main()
