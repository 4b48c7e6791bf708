"""Builds: through the cache, in parallel, each in a process of its own on this machine or on a Dask cluster's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from controller import calibration, golden
from controller.build_process import BuildProcess, Done, Job
from controller.cache import BuildCache, cache_key
from controller.calibration import Calibration
from controller.events import Listener, Message, Progress, ignore
from controller.home import Home
from targets.base import (
    LOCAL_OPTIONS,
    BuiltFile,
    FetchingHalf,
    FleetError,
    HostHalf,
    Option,
    Preprocess,
    QuantisingHalf,
    SourceModel,
    find,
)
from targets.blobs import BlobDir
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo, bundle_id, canonical, parse_manifest
from targets.files import make_directory
from targets.tuning import TuningHalf

Stages = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One model for one target."""

    model: SourceModel
    target: str
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """The outcome of a request. With ``error`` there is no manifest."""

    request: BuildRequest
    blobs: BlobDir
    seconds: float
    cached: bool = False
    manifest: Manifest | None = None
    manifest_bytes: bytes = b""
    #: Bundle id; empty with an error.
    id: str = ""
    #: Bytes of all files, without the manifest.
    size: int = 0
    error: FleetError | None = None


def build(
    requests: Sequence[BuildRequest],
    *,
    home: Home,
    jobs: int = 0,
    scheduler: str = "",
    listener: Listener = ignore,
    stop: threading.Event | None = None,
) -> list[Built]:
    """Build every request; outcomes in the order of the requests. One that fails, or crashes, fails alone.

    ``jobs`` builds run at once, as many as there are cores by default. ``scheduler`` is a Dask scheduler's address,
    such as ``tcp://host:8786``; its workers need the same version of fleet. Setting ``stop`` ends what is running.

    Raises:
        FleetError: only for what concerns all of them, such as a scheduler that does not answer.
    """
    build_cache = BuildCache(home.cache)
    stop = stop or threading.Event()
    jobs = jobs or min(len(os.sched_getaffinity(0)), max(len(requests), 1))
    with _workers(scheduler, home, stop) as run, ThreadPoolExecutor(jobs, thread_name_prefix="build") as pool:
        futures = [pool.submit(_one, request, home, build_cache, run, listener, stop) for request in requests]
        try:
            wait(futures)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


Run = Callable[[BuildRequest, Calibration | None, Path, Stages], Done]


def _one(
    request: BuildRequest, home: Home, cache: BuildCache, run: Run, listener: Listener, stop: threading.Event
) -> Built:
    start = time.monotonic()
    label = f"{request.model.name} for {request.target}"

    def stages(name: str, share: float) -> None:
        listener(Progress(device="", stage="build", share=share, detail=f"{label}: {name}"))

    def waiting() -> None:
        if stop.is_set():
            raise FleetError("the build was interrupted", code="interrupted")
        stages("waiting for another build of it", 0.0)

    try:
        host = find(request.target).host()
        if isinstance(host, FetchingHalf):
            request = replace(request, options=host.with_fetched(request.options, cache.root))
        if isinstance(host, TuningHalf):
            request = replace(request, options=host.with_tuned(request.options, home.tuned))
        toolchain = host.toolchain(request.options)
        samples = None
        if isinstance(host, QuantisingHalf) and host.quantises(request.options):
            samples = calibration.choose(request.model, str(request.options.get("calibration", "")))
            toolchain["calibration"] = samples.words
        key = cache_key(_key(request, host, toolchain, samples))
        with cache.lock(key, waiting):
            found = cache.load(key)
            if found is None:
                with _workdir(cache.root) as workdir:
                    done = run(request, samples, workdir, stages)
                    stages("store", 1.0)
                    manifest = _manifest(request, toolchain, done, cache.blobs)
                data = canonical(manifest)
                # Checked as every device will check it, before anybody else gets to see it.
                manifest = parse_manifest(data)
                cache.store(key, data)
            else:
                manifest, data = found
        # Of a build that is reused too: it is as slow, or as whatever it is, as on the day it was made.
        for warning in manifest.warnings or ():
            listener(Message("", f"{label}: {warning}", "warning"))
        stages("cached" if found else "done", 1.0)
        return Built(
            request=request,
            blobs=cache.blobs,
            seconds=time.monotonic() - start,
            cached=found is not None,
            manifest=manifest,
            manifest_bytes=data,
            id=bundle_id(data),
            size=sum(file.size for file in manifest.files),
        )
    except FleetError as error:
        stages("failed", 1.0)
        return Built(request=request, blobs=cache.blobs, seconds=time.monotonic() - start, error=error)


def _key(
    request: BuildRequest,
    host: HostHalf | QuantisingHalf,
    toolchain: Mapping[str, str],
    samples: Calibration | None,
) -> dict[str, Any]:
    """All that shapes a build. The path of the model's file is not among it."""
    model = request.model
    # A target in a package of its own is all of that package; ours build on one another.
    package = type(host).__module__.partition(".")[0]
    code = [*dict.fromkeys((package, "targets")), golden.__name__, *golden.SOURCES, calibration.__name__]
    if samples is not None and samples.kind == "zoo":
        code.append("controller.zoo")
    return {
        "model": {"sha256": model.sha256, "info": _info(model), "format": model.format},
        "io": [model.inputs, model.outputs],
        "target": request.target,
        "options": _recorded(request.options),
        "toolchain": dict(toolchain),
        "golden": [golden.RECIPE, golden.SETS, golden.reference(model)],
        "code": [_code(module) for module in code],
    }


@cache
def _code(module: str) -> str:
    """Digest of the sources of a module or a whole package: a changed compiler must not hand out its old results."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    origin = Path(spec.origin)
    sources = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for source in sources:
        name = str(source.relative_to(origin.parent))
        digest.update(name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _manifest(request: BuildRequest, toolchain: Mapping[str, str], done: Done, blobs: BlobDir) -> Manifest:
    output = done.output
    return Manifest(
        model=_info(request.model, output.preprocess),
        target=request.target,
        toolchain=dict(toolchain),
        options=_recorded(request.options),
        inputs=output.inputs,
        outputs=output.outputs,
        entry=output.entry,
        parameters=output.parameters,
        engine=output.engine,
        requirements=output.requirements,
        golden=Golden(done.golden_inputs, done.golden_outputs, output.rtol, output.atol, done.reference),
        files=tuple(_entry(file, blobs) for file in (*output.files, *done.golden_files)),
        warnings=output.warnings or msgspec.UNSET,
    )


def _recorded(options: Mapping[str, Option]) -> dict[str, Option]:
    return {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}


def _info(model: SourceModel, preprocess: Preprocess | None = None) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        source_sha256=model.sha256,
        origin=model.origin,
        labels=model.labels,
        preprocess=preprocess or model.preprocess,
        postprocess=model.postprocess,
    )


def _entry(file: BuiltFile, blobs: BlobDir) -> FileEntry:
    path = Path(file.path)
    size = path.stat().st_size
    return FileEntry(path=file.name, size=size, sha256=blobs.add_file(path), role=file.role, tensor=file.tensor)


@contextlib.contextmanager
def _workdir(root: Path) -> Iterator[Path]:
    folder = root / "work"
    make_directory(folder)
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _workers(scheduler: str, home: Home, stop: threading.Event) -> Iterator[Run]:
    """What runs a build: a process here, or one on a worker of a Dask cluster."""
    if not scheduler:
        with _stopper(stop) as running:
            yield lambda request, samples, workdir, stages: _here(request, samples, workdir, stages, home, running)
        return
    from controller import dask_builds

    with dask_builds.executor(scheduler) as executor:
        yield lambda request, samples, workdir, stages: dask_builds.run(
            executor, request.model, request.target, request.options, samples, workdir, stages, stop
        )


@contextlib.contextmanager
def _stopper(stop: threading.Event) -> Iterator[set[BuildProcess]]:
    """The builds now running; all are ended when ``stop`` is set or this context is left by an exception."""
    running: set[BuildProcess] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stop.wait(0.1):
                for process in list(running):
                    process.stop()

    watcher = threading.Thread(target=watch, name="build-stopper", daemon=True)
    watcher.start()
    try:
        yield running
    finally:
        over.set()
        watcher.join()


def _here(
    request: BuildRequest,
    samples: Calibration | None,
    workdir: Path,
    stages: Stages,
    home: Home,
    running: set[BuildProcess],
) -> Done:
    job = Job(request.model, request.target, dict(request.options), str(workdir), str(home.cache / "zig"), samples)
    process = BuildProcess(job)
    running.add(process)
    try:
        return process.run(stages)
    finally:
        running.discard(process)
