"""The device half of target ``jetson``: programs of torch in the board's own Python, TVM's kernels in the worker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.base import FleetError, LoadedBundle, Requirements, Runner
from targets.board_files import Scratch, cache_folder
from targets.jetson import board_python, cache
from targets.jetson.board_python import BoardError, BoardPython
from targets.jetson.cache import EngineCache
from targets.jetson.options import TORCH_ENGINES, resolve
from targets.jetson.runner import TorchRunner

if TYPE_CHECKING:
    from targets.bundle import Manifest

Progress = Callable[[str], None]

#: MiB that engines may take.
CACHE_SIZE = "FLEET_JETSON_CACHE_MB"
_CACHE_SIZE = 4096
#: What a simulated board cannot have.
_NO_GPU_ENGINES = ("torch-tensorrt", "tvm")
#: Errors that a damaged file does not explain.
_NO_FAULT_OF_FILES = ("no-memory", "helper-memory", "no-operators")


class JetsonDevice:
    """A :class:`targets.base.DeviceHalf`, `targets.base.CompilingDevice` and `targets.base.TellingDevice`.

    A simulated one is this machine with this Python's torch: on its GPU if it has one, else on the processor.
    """

    def __init__(self, simulated: bool = False) -> None:
        self._simulated = simulated
        self._scratch: Scratch | None = None
        #: Started to find out whether it can run a bundle; the next load takes it.
        self._asked: tuple[BoardPython, str, dict[str, str]] | None = None

    @property
    def load_deadline(self) -> float:
        return board_python.load_deadline()

    def unmet(self, requirements: Requirements) -> str:
        engine = requirements.accelerator
        if engine not in TORCH_ENGINES:
            if self._simulated:
                return (
                    "a simulated Jetson has no GPU of a Jetson for kernels of TVM: it has eager, torchscript, inductor"
                )
            from targets.jetson.tvm_device import unmet_tvm

            return unmet_tvm(requirements)
        try:
            helper, found = self._start(engine)
        except FleetError as error:
            return error.message
        if why := self._lacking(engine, found):
            helper.end()
            return why
        self._asked = (helper, engine, found)
        return ""

    def load(self, bundle: LoadedBundle, threads: int) -> Runner:
        return self.load_telling(bundle, threads, lambda _stage: None)

    def load_telling(self, bundle: LoadedBundle, threads: int, progress: Progress) -> Runner:
        manifest: Manifest = bundle.manifest
        engine = manifest.requirements.accelerator
        if engine not in TORCH_ENGINES:
            from targets.jetson.tvm_device import load_tvm

            return load_tvm(bundle, threads)
        helper, found = self._helper(engine)
        if why := self._lacking(engine, found):
            helper.end()
            raise BoardError(why, code="unmet")
        return self._load(bundle, threads, helper, found, progress)

    def telemetry(self) -> dict[str, float]:
        if self._simulated:
            return {}
        from targets.jetson import conditions

        return conditions.telemetry()

    def _sensed(self) -> dict[str, str]:
        """What the board's sensors and settings are now; a simulated one has none."""
        if self._simulated:
            return {}
        from targets.jetson import conditions

        return conditions.conditions()

    # --- Loading --------------------------------------------------------------------------------

    def _load(
        self, bundle: LoadedBundle, threads: int, helper: BoardPython, found: dict[str, str], progress: Progress
    ) -> TorchRunner:
        manifest: Manifest = bundle.manifest
        engine = manifest.requirements.accelerator
        order = _order(bundle, threads)
        self._running = helper
        try:
            if engine == "eager":
                said = helper.load(order, progress)
            else:
                said = self._kept_or_built(manifest, order, found, progress)
        except BaseException:
            self._running.kill()
            self._remove_scratch()
            raise
        known = {**_conditions(manifest, self._simulated, found), **said}
        return TorchRunner(manifest, self._running, known, self._remove_scratch, self._sensed)

    def _kept_or_built(
        self, manifest: Manifest, order: dict[str, Any], found: dict[str, str], progress: Progress
    ) -> dict[str, str]:
        """Have ``_running`` load what was built before, or what is built now; what was said of it."""
        engine = manifest.requirements.accelerator
        place = EngineCache(cache_folder("jetson") / "engines", _cache_size())
        here = {**{name: value for name, value in found.items() if name != "lacking"}, **_system()}
        if engine == "torch-tensorrt":
            order["settings"]["timing_cache"] = str(place.timing(cache.key(here)))
        key = cache.key({"program": _content(manifest), "settings": _settings(manifest), **here})
        if kept := place.find(key):
            source = f"cache, built in {kept[1].seconds:.1f} s"
            try:
                said = self._running.load({**order, "folder": str(kept[0])}, progress)
                return {**kept[1].found, **said, "engine_from": source}
            except BoardError as error:
                if error.code in _NO_FAULT_OF_FILES:
                    raise
                # It cannot be loaded any more: built again, by a helper that has seen nothing.
                place.drop(key)
                self._running.kill()
                self._running, _ = self._start(engine)
        with place.staging() as folder:
            begin = time.monotonic()
            said = self._running.build({**order, "folder": str(folder)}, progress)
            seconds = time.monotonic() - begin
            order["folder"] = str(place.keep(key, folder, said, seconds))
        # What a compiler leaves in its process is not what is measured.
        self._running.end()
        self._running, _ = self._start(engine)
        return {**said, **self._running.load(order, progress), "engine_from": f"built here in {seconds:.1f} s"}

    def _helper(self, engine: str) -> tuple[BoardPython, dict[str, str]]:
        if self._asked is not None and self._asked[1] == engine:
            (helper, _, found), self._asked = self._asked, None
            return helper, found
        return self._start(engine)

    def _start(self, engine: str) -> tuple[BoardPython, dict[str, str]]:
        """A new helper, and what it found here. Raises :class:`BoardError`."""
        if self._scratch is None:
            self._scratch = Scratch("jetson")
        helper = BoardPython(board_python.find(self._simulated), self._scratch.path)
        try:
            return helper, helper.hello(engine)
        except BaseException:
            helper.kill()
            raise

    def _lacking(self, engine: str, found: dict[str, str]) -> str:
        """Why an engine cannot run here, in words; empty when it can."""
        if self._simulated:
            if engine in _NO_GPU_ENGINES and found["lacking"]:
                return (
                    f"a simulated Jetson has no TensorRT ({found['lacking']}): it has eager, torchscript and inductor; "
                    "choose one with --option engine="
                )
        elif found["device"] != "cuda":
            return (
                f"torch {found['torch']} finds no GPU of a Jetson that it can use: it is not built for the CUDA of "
                "this board, or this user may not open the GPU"
            )
        return found["lacking"]

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None


def _order(bundle: LoadedBundle, threads: int) -> dict[str, Any]:
    """What `targets.jetson.helper` is asked to build and to load."""
    manifest: Manifest = bundle.manifest
    dynamic = resolve(manifest.options).dynamic

    def spec(tensor: Any) -> dict[str, Any]:
        return {"shape": list(tensor.shape), "dtype": tensor.dtype}

    return {
        "program": str(bundle.path(manifest.entry).resolve()),
        "weights": [str(bundle.path(name).resolve()) for name in manifest.parameters],
        "inputs": [spec(tensor) for tensor in manifest.inputs],
        "outputs": [spec(tensor) for tensor in manifest.outputs],
        "open_inputs": [dynamic and bool(tensor.shape) for tensor in manifest.inputs],
        "settings": {**_settings(manifest), "timing_cache": ""},
        "folder": "",
        "threads": threads,
    }


def _settings(manifest: Manifest) -> dict[str, Any]:
    options = resolve(manifest.options)
    return {
        "engine": manifest.requirements.accelerator,
        "precision": options.precision,
        "dynamic": options.dynamic,
        "workspace_mb": options.workspace_mb,
        "tf32": options.tf32,
    }


def _content(manifest: Manifest) -> list[Any]:
    """Program and weights by their digests, and the shapes that they are built for."""
    digests = {file.path: file.sha256 for file in manifest.files}
    shapes = [[tensor.dtype, *tensor.shape] for tensor in manifest.inputs]
    return [digests[manifest.entry], [digests[name] for name in manifest.parameters], shapes]


def _system() -> dict[str, str]:
    """What else an engine may depend on: the system that brings its libraries, and the code that builds it."""
    from targets.jetson import identity

    known = identity.find()
    return {"machine": platform.machine(), "l4t": known.l4t, "module": known.module, "code": _code()}


@once
def _code() -> str:
    """Digest of what runs in the board's Python."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        [*folder.glob("engines/*.py"), *(folder / f"{name}.py" for name in ("helper", "rebuild", "dialects"))]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _conditions(manifest: Manifest, simulated: bool, found: dict[str, str]) -> dict[str, str]:
    """What this runtime is, as far as it is known before anything ran."""
    options = resolve(manifest.options)
    device = f"{found['gpu']} (sm_{found['sm'].replace('.', '')})" if found["device"] == "cuda" else "cpu"
    known = {
        "engine": manifest.requirements.accelerator,
        "device": f"{device}, which stands for a Jetson" if simulated else device,
        "precision": options.precision,
        "tf32": "on" if options.tf32 else "off",
        "board_python": found.get("python", ""),
        **{name: found.get(name, "") for name in ("torch", "torch_tensorrt", "tensorrt", "cuda", "cudnn")},
    }
    return {name: value for name, value in known.items() if value}


def _cache_size() -> int:
    text = os.environ.get(CACHE_SIZE, "") or str(_CACHE_SIZE)
    with contextlib.suppress(ValueError):
        if 0 <= int(text) < 1 << 30:
            return int(text) << 20
    raise BoardError(f"{CACHE_SIZE} is '{text[:40]}', which is no number of MiB", code="bad-setting")
