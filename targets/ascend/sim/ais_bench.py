"""The simulated ``python3 -m ais_bench``: inference and measurement of one offline model."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.ascend.sim import bench_args
from targets.ascend.sim.bench_stdout import Library, Progress, set_up_logging
from targets.ascend.sim.board import Board, Fault, load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from targets.ascend.sim.bench_files import Batches
    from targets.ascend.sim.bench_model import Model

logger = logging.getLogger("ais_bench")
_BARS = {"array": "Inference array Processing", "files": "Inference files Processing"}
_BARS |= {"tensor": "Inference tensor Processing", "full": "Inference Processing full"}


@dataclass(frozen=True)
class Measured:
    """What one process measured; times in seconds since 1970."""

    throughput: float
    start: float
    end: float


def main(prefix: Path, arguments: Sequence[str]) -> int:
    """Run the tool; its exit status. What goes wrong leaves as the exception whose traceback the real one prints."""
    board = load(prefix)
    fault = board.faults.ais_bench
    if fault and fault.kind == "absent":
        raise ModuleNotFoundError("No module named 'aclruntime'", name="aclruntime")
    if fault and fault.kind == "garbage":
        sys.stdout.buffer.write(b"[INFO] acl init success\n" + bytes(range(256)) * 64)
        sys.stdout.flush()
        return 0
    set_up_logging()
    args = bench_args.parse(arguments)
    set_up_logging(args.debug)
    if isinstance(args.device, list):
        from targets.ascend.sim import bench_devices

        return bench_devices.run(board, args, list(arguments))
    library = Library()
    try:
        measure(board, args, args.device, library)
    finally:
        sys.stdout.flush()
        library.flush()
    return 0


def measure(board: Board, args: argparse.Namespace, device: int, library: Library, folder: str = "") -> Measured:
    """One device's whole run; ``folder`` is below the run's own, for one of several devices.

    Raises:
        RuntimeError: as ais_bench raises it.
    """
    from targets.ascend.sim import bench_files, bench_report
    from targets.ascend.sim.bench_model import Model

    model = Model(board, args.model, device, library)
    auto = args.auto_set_dymshape_mode or args.auto_set_dymdims_mode
    _choose(model, args)
    batch = float(args.batchsize or _batch(args, model))
    if args.debug:
        for line in model.describe():
            logger.debug(line)
    target = _folder(args, folder)
    batches = None
    if args.input:
        files = bench_files.of_inputs(args.input.split(","), len(model.header.inputs))
        batches = bench_files.batches(files, 0 if auto else model.sizes()[0], single=auto or args.pipeline)
    elif not auto:
        model.sizes()
    energy = _Energy(args.npu_id) if args.energy_consumption else None
    if args.warmup_count:
        first = _inputs(model, batches, 0, args)
        for _ in range(args.warmup_count):
            model.run(first, 1)
        model.times.clear()
        logger.info(f"warm up {args.warmup_count} done")
    if args.pipeline:
        logger.info(f"run in pipeline mode with computing threadsnumber:{args.threads}")
    start = time.time()
    infos, sizes = _infer(board.faults.ais_bench, model, batches, args, target)
    end = time.time()
    if auto and sizes:
        batch = sum(sizes) / len(sizes)
    shown: float = batch if auto else int(batch)
    rate = bench_report.show(model.times, shown, copies=args.display_all_summary)
    if energy:
        logger.info(f"NPU ID:{args.npu_id} energy consumption(J):{energy.joules(end - start)}")
    if target:
        summary = Path(f"{target}_summary.json")
        bench_report.write(summary, infos, sys.argv, model.times, rate)
        _spoil(board.faults.ais_bench, summary)
    model.close()
    return Measured(rate, start, end)


def _choose(model: Model, args: argparse.Namespace) -> None:
    """Set the profile: the first of the flags that was given wins."""
    if args.dym_batch:
        model.set_gear("batch", (args.dym_batch,))
    elif args.dym_hw:
        model.set_gear("image", _numbers(args.dym_hw))
    elif args.dym_dims or args.dym_shape:
        model.set_shapes(_named_shapes(args.dym_dims or args.dym_shape))


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise RuntimeError(f"invalid shape: {text}")
    return tuple(int(part) for part in parts)


def _named_shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for part in filter(None, text.split(";")):
        name, _, numbers = part.rpartition(":")
        shapes[name] = _numbers(numbers)
    return shapes


def _batch(args: argparse.Namespace, model: Model) -> int:
    if args.dym_batch:
        size = int(args.dym_batch)
    else:
        shape = model.shapes()[0]
        size = shape[0] if shape else 1
    logger.info(f"try get model batchsize:{size}")
    return size


def _folder(args: argparse.Namespace, below: str) -> str:
    """Where the outputs go, made; empty without ``--output``."""
    from targets.ascend.sim.bench_files import join

    if not args.output:
        return ""
    root = Path(args.output)
    root.mkdir(mode=0o750, parents=True, exist_ok=True)
    root.chmod(0o750)
    target = join(args.output, args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
    if below:
        target = join(target, below)
    Path(target).mkdir(mode=0o750, parents=True, exist_ok=True)
    logger.info(f"output path:{target}")
    return target


def _inputs(model: Model, batches: Batches | None, run: int, args: argparse.Namespace) -> list[NDArray[Any]]:
    """The bytes of every input for one run; an automatic shape is set on the way."""
    import numpy as np

    from targets.ascend.sim import bench_files

    if batches is None:
        if args.pure_data_type == "zero":
            return [np.zeros(size, np.uint8) for size in model.sizes()]
        random = np.random.default_rng()
        return [random.integers(0, 256, size, np.uint8) for size in model.sizes()]
    names = batches.runs[run]
    if args.auto_set_dymshape_mode or args.auto_set_dymdims_mode:
        arrays = [bench_files.load(listed[0]) for listed in names]
        model.set_shapes({tensor.name: array.shape for tensor, array in zip(model.header.inputs, arrays, strict=True)})
        return [np.ascontiguousarray(array) for array in arrays]
    return [
        np.ascontiguousarray(bench_files.joined(listed, size))
        for listed, size in zip(names, model.sizes(), strict=True)
    ]


def _infer(
    fault: Fault | None, model: Model, batches: Batches | None, args: argparse.Namespace, target: str
) -> tuple[dict[str, Any], list[int]]:
    """Run everything and save the outputs; what the summary says of the files, and each run's batch."""
    runs = len(batches.runs) if batches else 1
    infos: dict[str, Any] = {}
    sizes: list[int] = []
    bar = None if args.pipeline else Progress(_BARS[args.run_mode], runs)
    for run in range(runs):
        if fault and run >= fault.after:
            _runtime_fault(fault)
        outputs = model.run(_inputs(model, batches, run, args), args.loop)
        sizes.append(model.shapes()[0][0] if model.shapes()[0] else 1)
        if args.debug:
            model_ms = model.times.compute[-1]
            logger.debug(f"model aclExec cost : {model_ms:.6f}")
        if target:
            infos |= _save(outputs, batches, run, args, target)
        if bar:
            bar.advance()
    if bar:
        bar.close()
    return infos, sizes


def _save(
    outputs: Sequence[NDArray[Any]], batches: Batches | None, run: int, args: argparse.Namespace, target: str
) -> dict[str, Any]:
    from targets.ascend.sim import bench_files

    if batches is None:
        names: list[tuple[str, ...]] = [(bench_files.PURE,)]
        per_run = 1
    else:
        names = list(zip(*batches.runs[run], strict=True))
        per_run = batches.per_run
    infos: dict[str, Any] = {
        str(run * per_run + place): {"infiles": list(files), "outfiles": []}
        for place, files in enumerate(names)
        if files[0] != bench_files.PADDING
    }
    for rank, output in enumerate(outputs):
        pieces = bench_files.parts(output, per_run, args.output_batchsize_axis)
        for place, (files, piece) in enumerate(zip(names, pieces, strict=True)):
            if files[0] != bench_files.PADDING:
                name = f"{bench_files.stem(files[0])}_{rank}"
                infos[str(run * per_run + place)]["outfiles"].append(bench_files.save(piece, target, name, args.outfmt))
    return infos


def _runtime_fault(fault: Fault) -> None:
    if fault.kind == "hang":
        while True:
            signal.pause()
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "no-space":
        raise OSError(28, "No space left on device")
    if fault.kind == "fail":
        raise RuntimeError("[507015][ACL: aicore exception] ")


def _spoil(fault: Fault | None, summary: Path) -> None:
    """A run that ends well but whose summary is cut short, as after a full disk."""
    if fault and fault.kind == "cut-summary":
        summary.write_text(summary.read_text()[: summary.stat().st_size // 2])


class _Energy:
    """A card's power before and after, by npu-smi: only a line of rated power, or an MCU's, is understood."""

    def __init__(self, npu: int) -> None:
        self._npu = npu
        self._before = self._watts()

    def joules(self, seconds: float) -> float:
        return (self._before + self._watts()) / 2 * seconds

    def _watts(self) -> float:
        done = subprocess.run(
            ["npu-smi", "info", "-t", "power", "-i", str(self._npu)], capture_output=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"Invalid npu id:{self._npu}, exec cmd: 'npu-smi info' to check valid npu_id")
        text = done.stdout.decode("gb2312", "replace")
        found: list[str] | str = next((line[34:] for line in text.splitlines() if "Power Dissipation(W)" in line), [])
        try:
            return float(found)  # type: ignore[arg-type]
        except TypeError as error:
            raise RuntimeError(str(error)) from None
