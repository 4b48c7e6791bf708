"""An offline model of the simulator on a device of its board: loaded, set to a profile, run by onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.ascend.sim import aipp, om
from targets.ascend.sim.atc_model import LARGEST_HALF
from targets.ascend.sim.bench_stdout import Library
from targets.ascend.sim.board import Board
from targets.base import FleetError

#: The runtime's codes as ais_bench prints them.
INVALID_PARAMETER = "[1][ACL: invalid parameter] "
GENERAL_FAILURE = "[-1][ACL: general failure] "
BAD_DEVICE = "[507033][Error code unknown] "
NO_DRIVER = "[507899][Error code unknown] "


@dataclass
class Times:
    """Milliseconds, as differences of single-precision instants since the session began: the real tool stores those."""

    h2d: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    d2h: list[float] = field(default_factory=list)
    _start: float = field(default_factory=lambda: time.perf_counter())

    def now(self) -> np.float32:
        """Milliseconds since the session began."""
        instant: np.float32 = np.float32((time.perf_counter() - self._start) * 1000)
        return instant

    def clear(self) -> None:
        self.h2d.clear()
        self.compute.clear()
        self.d2h.clear()


class Model:
    """A loaded model. Sizes are bytes; a dynamic model has none until a profile is set.

    Raises:
        RuntimeError: with ACL's code: no such device, a file that is no model of the simulator, another chip's.
    """

    def __init__(self, board: Board, path: str, device: int, library: Library) -> None:
        self._library = library
        self._device = device
        library.say("INFO", "acl init success")
        socs = board.socs()
        if device >= len(socs) or _no_driver(board):
            library.write("EL0003: The argument is invalid.\n        Solution: Check the input parameter range.\n")
            library.say("ERROR", f"acl open device {device} failed")
            raise RuntimeError(NO_DRIVER if _no_driver(board) else BAD_DEVICE)
        library.say("INFO", f"open device {device} success")
        try:
            self.header, network = om.read(Path(path))
            if self.header.soc_version != socs[device]:
                reason = "Model soc version is not support in this device."
                soc = self.header.soc_version
                library.write(f"E10001: Value [{soc}] for parameter [soc_version] is invalid. Reason: {reason}\n")
                raise FleetError(reason, code="bad-om")
        except FleetError as error:
            library.write(f"EE1001: The argument is invalid. Reason: {error.message}\n")
            library.say("ERROR", f"load model from file failed, model file is {path}")
            library.say("WARN", "Check failed:processModel->LoadModelFromFile(modelPath), ret:1")
            raise RuntimeError(INVALID_PARAMETER) from None
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = board.threads
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            library.say("ERROR", f"load model from file failed, model file is {path}")
            raise RuntimeError(f"{INVALID_PARAMETER}{str(error).splitlines()[0]}") from None
        library.say("INFO", f"load model {path} success")
        library.say("INFO", "create model description success")
        self._shapes: tuple[tuple[int, ...], ...] | None = (
            tuple(tensor.shape for tensor in self.header.inputs) if self.header.kind == "static" else None
        )
        self.times = Times()
        self._output_names = [output.name for output in self._session.get_outputs()]

    def set_gear(self, kind: str, gear: tuple[int, ...]) -> None:
        """Choose a profile: ``kind`` is ``batch``, ``image`` or ``dims``.

        Raises:
            RuntimeError: a model without such profiles, or not one of its.
        """
        say = self._library.say
        own = {"batch": "dymBatch", "image": "dymHW", "dims": "dynamic_dims"}[kind]
        checks = {
            "batch": "CheckDynamicBatchSize(batchsize, is_dymbatch)",
            "image": "CheckDynamicHWSize(dynamicSize, is_dymHW)",
            "dims": "CheckDynamicDims(dym_dims, gearCount, dims)",
        }
        profiles = self.header.profiles if self.header.kind == kind else ()
        found = next((profile for profile in profiles if profile.gear == gear), None)
        if found is None:
            if not profiles:
                option = {"batch": "dynamic_batch_size", "image": "dynamic_image_size", "dims": "dynamic_dims"}[kind]
                say("ERROR", f"the {option} parameter is not specified for model conversion")
            elif kind == "batch":
                gears = "".join(f"[{profile.gear[0]}]" for profile in profiles)
                say("ERROR", f"the {own} parameter is not correct")
                say("ERROR", f"model has dynamic batch size:{{{gears}}}, please set correct dynamic batch size")
            else:
                what = "HW" if kind == "image" else "dims"
                say("ERROR", f"the {own} parameter is not correct")
                say("ERROR", f"model has {len(profiles)} gear of {what}")
                for number, profile in enumerate(profiles):
                    say("ERROR", f"gear {number}: {','.join(map(str, profile.gear))}")
            say("WARN", f"Check failed:processModel->{checks[kind]}, ret:1")
            raise RuntimeError(INVALID_PARAMETER)
        self._shapes = found.shapes
        success = {"batch": "batch success", "image": "image size success.", "dims": "dims success."}[kind]
        say("INFO", f"check dynamic {success}")

    def set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Fix the shapes of a dynamic model; dims of a model with profiles become its gear.

        Raises:
            RuntimeError: names or axes that the model does not have.
        """
        wanted = []
        for tensor in self.header.inputs:
            shape = shapes.get(tensor.name, ())
            fits = len(shape) == len(tensor.shape) and all(
                axis == own or own < 0 < axis for axis, own in zip(shape, tensor.shape, strict=False)
            )
            if not fits:
                self._library.say("ERROR", f"the shape of {tensor.name} is not correct: {shape}")
                raise RuntimeError(INVALID_PARAMETER)
            wanted.append(shape)
        if self.header.kind == "dims":
            gear = tuple(
                axis
                for shape, tensor in zip(wanted, self.header.inputs, strict=True)
                for axis, own in zip(shape, tensor.shape, strict=True)
                if own < 0
            )
            self.set_gear("dims", gear)
            return
        if self.header.kind != "shape":
            self._library.say("ERROR", "the dynamic shape parameter is not specified for model conversion")
            raise RuntimeError(INVALID_PARAMETER)
        self._shapes = tuple(wanted)

    @property
    def is_ready(self) -> bool:
        """Whether every axis is known."""
        return self._shapes is not None

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The inputs' shapes as they are now, -1 where no profile was chosen."""
        return self._shapes or tuple(tensor.shape for tensor in self.header.inputs)

    def sizes(self) -> list[int]:
        """The bytes of each input as they are now."""
        if self._shapes is None:
            raise RuntimeError(
                "dynamic batch om model detected, but dymbatch, dymdims or dymshape not set!"
                if self.header.kind == "batch"
                else f"dynamic {self.header.kind} om model detected, but dymbatch, dymdims or dymshape not set!"
            )
        return [
            int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            for shape, tensor in zip(self._shapes, self.header.inputs, strict=True)
        ]

    def run(self, inputs: Sequence[NDArray[Any]], loop: int) -> list[NDArray[Any]]:
        """Copy the inputs there, run ``loop`` times, copy the outputs of the last back.

        Raises:
            RuntimeError: an input of another size, or what the network itself refuses.
        """
        sizes = self.sizes()
        for rank, (array, need) in enumerate(zip(inputs, sizes, strict=True)):
            if array.nbytes != need:
                name = self.header.inputs[rank].name
                self._library.say(
                    "ERROR", f"Check i:{rank} name:{name} in size:{array.nbytes} needsize:{need} not match"
                )
                self._library.say("ERROR", "Check InVector failed ret:-1")
                raise RuntimeError(GENERAL_FAILURE)
        there = [self._copy(array, self.times.h2d) for array in inputs]
        outputs: list[NDArray[Any]] = []
        for number in range(loop):
            start = self.times.now()
            outputs = self._execute(there)
            self.times.compute.append(float(self.times.now() - start))
            if loop > 1:
                self._library.write(f"\rloop inference exec: ({number + 1}/{loop})")
        if loop > 1:
            self._library.write("\n")
        return [self._copy(array, self.times.d2h) for array in outputs]

    def _copy(self, array: NDArray[Any], times: list[float]) -> NDArray[Any]:
        start = self.times.now()
        copy: NDArray[Any] = array.copy()
        times.append(float(self.times.now() - start))
        return copy

    def _execute(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        header = self.header
        assert self._shapes is not None
        blocks = {block.related_input_rank: block for block in header.aipp}
        feeds = {}
        for rank, (array, shape) in enumerate(zip(inputs, self._shapes, strict=True)):
            inside = header.network_inputs[rank]
            values: NDArray[Any] = np.frombuffer(array, np.uint8).view(header.inputs[rank].dtype).reshape(shape)
            if rank in blocks:
                network = self._network_shape(inside.shape, shape, blocks[rank])
                values = aipp.apply(blocks[rank], values, network, header.layout)
            if header.fp16 and values.dtype == np.float32:
                with np.errstate(over="ignore", invalid="ignore"):
                    values = np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
            feeds[inside.name] = values.astype(inside.dtype, copy=False)
        try:
            results = self._session.run(self._output_names, feeds)
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise RuntimeError(f"{GENERAL_FAILURE}{str(error).splitlines()[0]}") from None
        pairs = zip(results, header.outputs, strict=True)
        return [np.asarray(result).astype(tensor.dtype, copy=False) for result, tensor in pairs]

    def _network_shape(self, inside: tuple[int, ...], seen: tuple[int, ...], block: om.Aipp) -> tuple[int, ...]:
        """A picture's shape inside the network: the open axes are those of the picture that goes in."""
        height = seen[1] * 2 // 3 if block.input_format == "YUV420SP_U8" else seen[1]
        axes = {"N": seen[0], "C": 3, "H": height, "W": seen[2]}
        return tuple(axes[letter] if own < 0 else own for letter, own in zip(self.header.layout, inside, strict=True))

    def describe(self) -> list[str]:
        """The lines of ``--debug``."""
        lines = ["session info:<Model>", f"device:\t{self._device}", "input:"]
        sizes = self.sizes() if self.is_ready else [0] * len(self.header.inputs)
        for rank, (tensor, real) in enumerate(zip(self.header.inputs, sizes, strict=True)):
            lines.append(f"  #{rank}    {tensor.name}  {tensor.shape}  {tensor.dtype}  {self.full_size(rank)}  {real}")
        lines.append("output:")
        for rank, tensor in enumerate(self.header.outputs):
            lines.append(f"  #{rank}    {tensor.name}  {tensor.shape}  {tensor.dtype}")
        return lines

    def full_size(self, rank: int) -> int:
        """The bytes of an input in the largest profile."""
        item = np.dtype(self.header.inputs[rank].dtype).itemsize
        shapes = [profile.shapes[rank] for profile in self.header.profiles] or [self.shapes()[rank]]
        return max(abs(int(np.prod(shape, dtype=np.int64))) for shape in shapes) * item

    def close(self) -> None:
        self._library.say("INFO", "unload model success, model Id is 1")
        self._library.say("INFO", f"end to reset device {self._device}")
        self._library.say("INFO", "end to finalize acl")


def _no_driver(board: Board) -> bool:
    fault = board.faults.ais_bench
    return fault is not None and fault.kind == "no-driver"
