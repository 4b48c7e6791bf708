"""The device half for Ascend boards: ATC compiles a bundle when it is loaded, ais_bench runs and measures it."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from targets.ascend import npu_smi, toolkit
from targets.ascend.atc import DEADLINE as ATC_DEADLINE
from targets.ascend.atc import DEADLINE_VARIABLE as ATC_DEADLINE_VARIABLE
from targets.ascend.atc import seconds
from targets.ascend.plan import DEFAULT_PRECISION, ENTRY, PRECISION_MODES, Plan, decode
from targets.base import FleetError, LoadedBundle, Requirements
from targets.board_files import Scratch, cache_folder
from targets.files import disk_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.ascend.ais_bench import Done
    from targets.base import Array

#: Names the chip to use by its logic id, where a board has several; the first is taken otherwise.
DEVICE_VARIABLE = "FLEET_ASCEND_DEVICE"
#: Seconds that loading takes beside compiling.
_LOADING = 60.0
#: Seconds between two readings: npu-smi is a process of its own, and asks the driver that the network runs on.
_TELEMETRY_INTERVAL = 5.0
#: Seconds that a process of ais_bench warms up for, where queries are many.
_WARMUP_SECONDS = 0.5
#: Seconds between two lines that tell how far a run is.
_PROGRESS_INTERVAL = 1.0


class AscendDevice:
    """A :class:`targets.base.DeviceHalf`, `targets.base.CompilingDevice` and `targets.base.TellingDevice`."""

    def __init__(self) -> None:
        self._readings: dict[str, float] = {}
        self._read_at = -math.inf

    @property
    def load_deadline(self) -> float:
        return seconds(ATC_DEADLINE_VARIABLE, ATC_DEADLINE) + _LOADING

    def unmet(self, requirements: Requirements) -> str:
        try:
            chip = npu_smi.choose(npu_smi.discover(), os.environ.get(DEVICE_VARIABLE, ""))
            toolkit.find().command("atc")
            soc = _soc_version(chip) if requirements.accelerator else ""
        except FleetError as error:
            return f"{error.message} ({error.hint})" if error.hint else error.message
        if soc != requirements.accelerator:
            return f"the bundle is for {requirements.accelerator}, this board has {soc}"
        return ""

    def load(self, bundle: LoadedBundle, threads: int) -> AscendRunner:
        return self.load_telling(bundle, threads, lambda _stage: None)

    def load_telling(self, bundle: LoadedBundle, threads: int, progress: Callable[[str], None]) -> AscendRunner:
        return AscendRunner(bundle, progress)

    def telemetry(self) -> dict[str, float]:
        """Of each chip ``npu<device>_…``: power in W, temperature in °C, load of its AI cores, memory in bytes."""
        now = time.monotonic()
        if now - self._read_at >= _TELEMETRY_INTERVAL:
            # A board whose driver is not there yet may have it later.
            self._read_at = now
            self._readings = {}
            with contextlib.suppress(FleetError):
                for chip in npu_smi.discover().chips:
                    self._readings.update(_readings(chip))
        return dict(self._readings)


def _readings(chip: npu_smi.Chip) -> dict[str, float]:
    prefix = f"npu{chip.device}"
    found = {
        f"{prefix}_power_w": chip.power_w,
        f"{prefix}_temperature_c": chip.temperature_c,
        f"{prefix}_aicore_percent": chip.aicore_percent,
        f"{prefix}_memory_used_bytes": chip.memory_used_mb and chip.memory_used_mb * 2**20,
        f"{prefix}_memory_total_bytes": chip.memory_total_mb and chip.memory_total_mb * 2**20,
    }
    return {name: value for name, value in found.items() if value is not None}


def _soc_version(chip: npu_smi.Chip) -> str:
    """What ATC calls the chip; that of some only its board knows."""
    asked = chip.name.startswith("Ascend")
    board = npu_smi.query("info", "-t", "board", "-i", str(chip.npu), "-c", str(chip.index)) if asked else ""
    return npu_smi.soc_version(chip, board)


class AscendRunner:
    """A :class:`targets.base.Runner` and :class:`targets.base.Blocked`: a process of ais_bench for each call."""

    engine = "ais_bench"

    def __init__(self, bundle: LoadedBundle, progress: Callable[[str], None]) -> None:
        # NumPy is for the worker alone; the agent asks this module for telemetry.
        from targets.ascend.om_cache import OmCache
        from targets.ascend.sim.om import refuse_simulated

        self._manifest = bundle.manifest
        self._plan: Plan = decode(bundle.path(ENTRY).read_bytes())
        board = npu_smi.discover()
        self._driver = board.driver
        self._chip = npu_smi.choose(board, os.environ.get(DEVICE_VARIABLE, ""))
        self._toolkit = toolkit.find()
        self._soc = self._plan.soc_version or _soc_version(self._chip)
        self._start_seconds = 0.0
        #: Of a query, as the last block told; 0 before the first.
        self._latency = 0.0
        self._told_at = -math.inf
        self._scratch = Scratch("ascend")
        try:
            cache = OmCache(cache_folder("ascend") / "om")
            begin = time.monotonic()
            self._model, cached = cache.get(
                bundle,
                self._plan,
                self._soc,
                self._toolkit,
                self._scratch.path,
                lambda line: print(f"atc: {line}", flush=True),
                lambda waited: progress(f"atc compiles for {self._soc}, {waited:.0f} s"),
            )
            refuse_simulated(self._model, self._toolkit.version)
            how = "from the cache" if cached else f"in {time.monotonic() - begin:.0f} s"
            print(f"compiled for {self._soc} {how}: {self._model.name}", flush=True)
        except BaseException:
            self._scratch.close()
            raise

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        from targets.ascend.ais_bench import outputs

        self._write(inputs)
        done = self._run(1)
        return outputs(done.folder, _stem(0), self._manifest.outputs)

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        """Time on the NPU alone; copies, and the process around it, are not in it."""
        import numpy as np

        # A process begins cold, and each block is one: it shall not tell of that.
        warmup = min(queries, math.ceil(_WARMUP_SECONDS / self._latency)) if self._latency > 0 else 1
        latencies = self._run(queries, warmup).seconds
        self._latency = float(np.median(latencies))
        return latencies

    def block_queries(self, seconds_per_query: float) -> int:
        """As many as take as long as a start does: so at least half the time of a measurement is measured."""
        return max(1, math.ceil(self._start_seconds / seconds_per_query)) if seconds_per_query > 0 else 1

    def conditions(self) -> dict[str, str]:
        mode = self._plan.precision_mode or DEFAULT_PRECISION
        return {
            "device": f"{self._soc}, device {self._chip.device} (NPU {self._chip.npu}, {self._chip.health})",
            "cann": self._toolkit.version,
            "driver": self._driver,
            "precision_mode": mode if self._plan.precision_mode else f"{mode} (ATC's default)",
            "weight_dtype": PRECISION_MODES[mode][1] or "chosen by ATC",
            "input_dtype": self._manifest.inputs[0].dtype,
            "om": self._model.stem[:16],
            "timed": "execution on the NPU, without copies (NPU_compute_time)",
        }

    def close(self) -> None:
        self._scratch.close()

    def _write(self, inputs: Sequence[Array]) -> None:
        for index, (array, spec) in enumerate(zip(inputs, self._manifest.inputs, strict=True)):
            if array.shape != spec.shape or array.dtype.name != spec.dtype:
                raise FleetError(
                    f"input '{spec.name}' is {array.dtype} {list(array.shape)}, wanted {spec.dtype} {list(spec.shape)}",
                    code="bad-input",
                )
            with disk_errors(f"input '{spec.name}'"):
                (self._scratch.path / f"{_stem(index)}.bin").write_bytes(array.tobytes())

    def _run(self, loop: int, warmup: int = 1) -> Done:
        from targets.ascend import ais_bench

        folder = self._scratch.path
        shutil.rmtree(folder / ais_bench.OUTPUT, ignore_errors=True)
        with disk_errors("results of ais_bench"):
            (folder / ais_bench.OUTPUT).mkdir(mode=0o755)
            model = _beside(self._model, folder)
        job = ais_bench.Job(
            model=model,
            device=self._chip.device,
            batch=self._plan.batch,
            inputs=tuple(f"{_stem(index)}.bin" for index in range(len(self._manifest.inputs))),
            loop=loop,
            warmup=warmup,
            profile=bool(self._plan.batches),
        )
        deadline = seconds(ais_bench.DEADLINE_VARIABLE, ais_bench.DEADLINE)
        done = ais_bench.execute(job, self._toolkit, folder, deadline=deadline, on_progress=self._tell)
        self._start_seconds = done.started
        return done

    def _tell(self, done: int, total: int) -> None:
        if (now := time.monotonic()) - self._told_at >= _PROGRESS_INTERVAL and total > 1:
            self._told_at = now
            print(f"ais_bench: {done} of {total}", flush=True)


def _stem(index: int) -> str:
    return f"input{index}"


def _beside(model: Path, folder: Path) -> str:
    """The model under a name in ``folder`` that has only characters which ais_bench allows, and is no symbolic link."""
    link = folder / "model.om"
    if not link.exists():
        try:
            os.link(model, link)
        except OSError:
            shutil.copyfile(model, link)
    return link.name
