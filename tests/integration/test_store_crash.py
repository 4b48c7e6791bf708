"""The store and the journal after their process was killed, whenever that was."""

import random
import subprocess
import sys
import threading
from pathlib import Path

from store_victim import Witness

VICTIM = Path(__file__).with_name("store_victim.py")


def test_killed_before_every_single_change_on_the_disk(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, VICTIM, "every", tmp_path], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    # Were it much less, the profiler would no longer see the calls.
    assert int(run.stdout) > 50


def test_killed_at_any_time(tmp_path: Path) -> None:
    """SIGKILL from outside, anywhere between two instructions, ten lives in the same folder."""
    chance = random.Random(7)
    witness = Witness(tmp_path)
    said = 0
    for _ in range(10):
        with subprocess.Popen([sys.executable, VICTIM, "live", tmp_path], stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            try:
                assert victim.stdout.readline() == "ready\n"
                timer = threading.Timer(chance.uniform(0.0, 0.5), victim.kill)
                timer.start()
                for line in victim.stdout:
                    # The last line may be cut off by death.
                    if line.endswith("\n"):
                        witness.listen(line)
                        said += 1
                timer.join()
            finally:
                victim.kill()
        assert victim.returncode == -9
        witness.check()
    assert said > 50
    assert witness.generation > 0
