"""Builds on a Dask cluster, when one machine is not enough.

A worker gets the model's bytes and hands back files: nothing of this machine's file system is needed there. Dask moves
Python objects by pickle and trusts whoever reaches it, so a scheduler belongs on a network that is trusted as much.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, TimeoutError
from pathlib import Path
from typing import Any

import msgspec

from controller.build_process import BuildProcess, Done, Failed, Job, raised
from controller.calibration import Calibration, files_of, with_files
from targets.base import LOCAL_OPTIONS, FleetError, Option, SourceModel, find

CONNECT_TIMEOUT = "10s"
POLL = 0.2


class _Answer(msgspec.Struct, frozen=True):
    outcome: Done | Failed
    toolchain: dict[str, str]


@contextlib.contextmanager
def executor(scheduler: str) -> Iterator[Executor]:
    """An executor on the cluster of ``scheduler``. Raises FleetError ``no-scheduler``."""
    try:
        from distributed import Client
    except ImportError:
        raise FleetError(
            "building on a Dask cluster needs Dask, which is not installed",
            code="no-scheduler",
            hint="pip install 'fleet-edge[dask]'",
        ) from None
    try:
        client = Client(scheduler, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise FleetError(
            f"no Dask scheduler answers at {scheduler}: {str(error)[:200]}",
            code="no-scheduler",
            hint="start one with: dask scheduler; dask worker ADDRESS",
        ) from None
    with client:
        yield client.get_executor(pure=False)


def run(
    executor: Executor,
    model: SourceModel,
    target: str,
    options: Mapping[str, Option],
    calibration: Calibration | None,
    workdir: Path,
    stages: Callable[[str, float], None],
    stop: threading.Event,
) -> Done:
    """One build on some worker; its files end up below ``workdir``."""
    job = Job(msgspec.structs.replace(model, path=""), target, dict(options), "", "", calibration)
    samples = files_of(calibration)
    contents = _option_files(options)
    future = executor.submit(build_there, msgspec.json.encode(job), Path(model.path).read_bytes(), samples, contents)
    stages("on the cluster", 0.0)
    while True:
        if stop.is_set():
            future.cancel()
            raise FleetError("the build was interrupted", code="interrupted")
        try:
            data, contents = future.result(timeout=POLL)
            break
        except TimeoutError:
            continue
        except CancelledError:
            raise FleetError("the cluster gave the build up", code="build-crashed", hint="did a worker die?") from None
        except Exception as error:
            # Whatever a cluster raises here (a lost worker, another version of Python) is not about the model.
            raise FleetError(f"the cluster could not build: {str(error)[:500]}", code="build-crashed") from error
    answer = msgspec.json.decode(data, type=_Answer)
    if isinstance(answer.outcome, Failed):
        raise raised(answer.outcome)
    here = find(target).host().toolchain(options)
    if answer.toolchain != here:
        other = [f"{name} {answer.toolchain.get(name)} (here {version})" for name, version in here.items()
                 if answer.toolchain.get(name) != version]  # fmt: skip
        raise FleetError(
            f"the cluster's worker built with {', '.join(other) or 'other tools'}",
            code="other-toolchain",
            hint="install the same versions there, and name the processor: --option mcpu=…",
        )
    return _brought_here(answer.outcome, contents, workdir)


def build_there(
    job_data: bytes, model: bytes, samples: Mapping[str, bytes], option_files: Mapping[str, bytes]
) -> tuple[bytes, dict[str, bytes]]:
    """On the worker: build, and hand back the outcome and the contents of its files by their names in the bundle.

    ``samples`` are the files to calibrate on, ``option_files`` those that options name, by the option.
    """
    job = msgspec.json.decode(job_data, type=Job)
    with tempfile.TemporaryDirectory(prefix="fleet-build-") as folder:
        source = Path(folder) / f"model.{job.model.format}"
        source.write_bytes(model)
        workdir = Path(folder) / "work"
        workdir.mkdir()
        zig_cache = Path(tempfile.gettempdir()) / "fleet-zig"
        options = dict(job.options)
        for name, data in option_files.items():
            options[name] = str(Path(folder) / f"{name}{Path(str(options[name])).suffix}")
            Path(str(options[name])).write_bytes(data)
        local = msgspec.structs.replace(
            job,
            options=options,
            model=msgspec.structs.replace(job.model, path=str(source)),
            calibration=with_files(job.calibration, samples, Path(folder) / "samples"),
            workdir=str(workdir),
            zig_cache=str(zig_cache),
        )
        outcome: Done | Failed
        contents: dict[str, bytes] = {}
        try:
            outcome = BuildProcess(local).run(lambda _name, _share: None)
            contents = {file.name: Path(file.path).read_bytes() for file in _files(outcome)}
        except FleetError as error:
            outcome = Failed(error.message, error.hint, error.code, type(error).__name__)
        toolchain = find(job.target).host().toolchain(options)
        return msgspec.json.encode(_Answer(outcome, toolchain)), contents


def _option_files(options: Mapping[str, Option]) -> dict[str, bytes]:
    """What is in the files that options name: nothing of this machine's file system is there on the worker."""
    named = {name: Path(str(options[name])) for name in LOCAL_OPTIONS & options.keys() if name != "calibration"}
    return {name: path.read_bytes() for name, path in named.items() if path.is_file()}


def _files(done: Done) -> tuple[Any, ...]:
    return (*done.output.files, *done.golden_files)


def _brought_here(done: Done, contents: Mapping[str, bytes], workdir: Path) -> Done:
    """Write the files under names of our own; a bundle's names are only names until the manifest is checked."""
    placed = {}
    for index, file in enumerate(_files(done)):
        path = workdir / f"{index:05d}"
        path.write_bytes(contents[file.name])
        placed[file.name] = msgspec.structs.replace(file, path=str(path))
    output = msgspec.structs.replace(done.output, files=tuple(placed[file.name] for file in done.output.files))
    golden_files = tuple(placed[file.name] for file in done.golden_files)
    return msgspec.structs.replace(done, output=output, golden_files=golden_files)
