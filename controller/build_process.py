"""One build in a process of its own: what a compiler leaks, prints or crashes on stays there.

`run` is the parent's side; ``python -m controller.build_process`` the child's. The job goes in as one line of JSON,
then lines come out: progress, and at the end a result or an error. Nothing is pickled; the child ends with its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from controller.calibration import Calibration
from targets.base import BuildOutput, BuiltFile, FleetError, HostHalf, Option, QuantisingHalf, SourceModel

LOG = "build.log"


class Job(msgspec.Struct, frozen=True):
    model: SourceModel
    target: str
    options: dict[str, Option]
    workdir: str
    zig_cache: str
    #: For a half that quantises, what it is calibrated on.
    calibration: Calibration | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """What was built, and the golden data."""

    output: BuildOutput
    golden_files: tuple[BuiltFile, ...]
    golden_inputs: tuple[tuple[str, ...], ...]
    golden_outputs: tuple[tuple[str, ...], ...]
    reference: str


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    name: str
    share: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str
    hint: str
    code: str
    kind: str


Line = Done | Stage | Failed


class BuildProcess:
    """A build that can be stopped from another thread."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, progress: Callable[[str, float], None]) -> Done:
        """Build. Raises :class:`FleetError`: the build's own, or ``build-crashed`` with the child's last words."""
        log = Path(self.job.workdir) / LOG
        environment = {**os.environ, "FLEET_ZIG_CACHE": self.job.zig_cache, "PYTHONHASHSEED": "0"}
        with log.open("wb") as errors:
            with self._lock:
                if self._stopped:
                    raise _interrupted()
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "controller.build_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                )
            with process:
                assert process.stdin is not None and process.stdout is not None
                done: Done | None = None
                failed: Failed | None = None
                try:
                    process.stdin.write(msgspec.json.encode(self.job) + b"\n")
                    process.stdin.flush()
                    for data in process.stdout:
                        line = msgspec.json.decode(data, type=Line)
                        if isinstance(line, Stage):
                            progress(line.name, line.share)
                        elif isinstance(line, Done):
                            done = line
                        else:
                            failed = line
                except (BrokenPipeError, msgspec.MsgspecError):
                    process.kill()
                finally:
                    # The child takes the end of its input for the end of its parent.
                    process.stdin.close()
                    if sys.exc_info()[0] is not None:
                        process.kill()
        if self._stopped:
            raise _interrupted()
        if failed is not None:
            raise raised(failed)
        if done is None or process.returncode != 0:
            raise _crashed(process.returncode, log)
        return done

    def stop(self) -> None:
        """End the build now; `run` raises."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()


def raised(failed: Failed) -> FleetError:
    """The error that a child told of."""
    from targets.base import ModelError

    kind = ModelError if failed.kind == "ModelError" else FleetError
    return kind(failed.message, hint=failed.hint, code=failed.code)


def _interrupted() -> FleetError:
    return FleetError("the build was interrupted", code="interrupted")


def _crashed(status: int, log: Path) -> FleetError:
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
        hint = "is there enough memory? " if -status == signal.SIGKILL else ""
    else:
        how, hint = f"ended with status {status}", ""
    return FleetError(
        f"the build process {how}",
        code="build-crashed",
        hint=hint + (f"its last words: {words[-1][:300]}" if words else "it said nothing"),
    )


def build(job: Job, progress: Callable[[str, float], None]) -> Done:
    """The build itself, in this process."""
    from controller import calibration, golden
    from targets.base import find

    workdir = Path(job.workdir)
    host = find(job.target).host()
    own: tuple[golden.Run, str] | None = None
    if isinstance(host, QuantisingHalf) and host.quantises(job.options):
        chosen = job.calibration or calibration.choose(job.model, "")
        quantised = host.build_quantised(
            job.model,
            {name: value for name, value in job.options.items() if name != "calibration"},
            lambda specs: calibration.inputs(chosen, job.model, specs),
            workdir,
            progress,
        )
        output, own = quantised.output, (quantised.reference, quantised.words)
    else:
        assert isinstance(host, HostHalf)
        output = host.build(job.model, job.options, workdir, progress)
    progress("golden", 1.0)
    data = golden.make(job.model, output.inputs, output.outputs, workdir, own, output.preprocess)
    return Done(output, data.files, data.inputs, data.outputs, data.reference)


def main() -> None:
    # Standard output belongs to the protocol: whatever a compiler prints goes to the log.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(line: Line) -> None:
        out.write(msgspec.json.encode(line) + b"\n")

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say(build(job, lambda name, share: say(Stage(name, share))))
    except FleetError as error:
        import traceback

        traceback.print_exc()
        say(Failed(error.message, error.hint, error.code, type(error).__name__))
    except Exception as error:
        import traceback

        # Anything else is a fault of ours or of a library; the parent gets its words, the log its traceback.
        traceback.print_exc()
        say(Failed(f"the build failed: {type(error).__name__}: {error}"[:600], "", "build-failed", "FleetError"))
    sys.stdout.flush()
    # Without the interpreter's tidy end: compilers' destructors have crashed on it, after all was done.
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
