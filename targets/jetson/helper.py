#!/usr/bin/env python3
"""The part of the device half that runs in the board's own Python, beside its ``torch`` and ``torch_tensorrt``.

It is started as a file, takes from the agent's installation only modules that this Python can read (`_own_package`),
reads requests from its standard input and answers on its standard output; `targets.jetson.words` is all that can be
asked. It ends when its input does, and with the process that started it.

Python 3.8, which JetPack 5 has, and nothing but torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def _own_package() -> None:
    """Make our own packages importable without the folder they lie in: it is another Python's site-packages."""
    folder = Path(__file__).resolve().parents[1]
    for name, path in (("targets", folder), ("targets.pynq", folder / "pynq"), ("targets.jetson", folder / "jetson")):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module


class Helper:
    """One loaded program at most."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell
        self._device: Any = None
        self._call: Any = None
        self._order: Any = {}
        self._inputs: tuple[Any, ...] = ()
        self._dtypes: list[Any] = []

    def answer(self, name: str, fields: dict[str, Any], payload: bytes) -> Any:
        if name == "hello":
            return _json(self.hello(**fields))
        if name == "build":
            return _json(self.build(json.loads(payload.decode())))
        if name == "load":
            return _json(self.load(json.loads(payload.decode())))
        if name == "infer":
            return self.infer(payload)
        if name == "measure":
            return self.measure(fields["queries"])
        if name == "together":
            return self.together(fields["queries"])
        return b""

    def hello(self, protocol: int, engine: str) -> dict[str, str]:
        from targets.jetson import engines, words

        if protocol != words.PROTOCOL:
            raise engines.Refused(
                "wrong-protocol", f"the helper speaks protocol {words.PROTOCOL}, the agent {protocol}"
            )
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "",
            "device": self._device.type,
            "engine": engine,
            "lacking": engines.find(engine).available(),
        }
        if self._device.type == "cuda":
            properties = torch.cuda.get_device_properties(0)
            found["gpu"] = properties.name
            found["sm"] = f"{properties.major}.{properties.minor}"
            found["cudnn"] = str(torch.backends.cudnn.version() or "")
        else:
            found["cpu"] = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else ""
        if engine == "torch-tensorrt" and not found["lacking"]:
            found.update(engines.find(engine).versions())
        return found

    # --- Programs -------------------------------------------------------------------------------

    def build(self, order: dict[str, Any]) -> dict[str, str]:
        """Compile a program into files of the order's folder."""
        engine, work = self._work(order)
        return _texts(engine.build(work))

    def load(self, order: dict[str, Any]) -> dict[str, str]:
        """Make what was built ready, and run it once."""
        import torch

        engine, work = self._work(order)
        self._tell("load")
        # Shapes are fixed for good, or are few: what cuDNN tries once is worth it.
        torch.backends.cudnn.benchmark = True
        call, found = engine.load(work)
        self._order, self._call = order, call
        self._dtypes = [_dtype(spec["dtype"]) for spec in order["outputs"]]
        self._inputs = work.examples
        self._tell("first run")
        outputs = self._run()
        found["input_dtype"] = _names(self._inputs)
        found["output_dtype"] = _names(outputs)
        if self._device.type == "cuda":
            found["gpu_memory_mib"] = str(torch.cuda.max_memory_allocated() >> 20)
        return _texts(found)

    def _work(self, order: dict[str, Any]) -> Any:
        import torch

        from targets.jetson import engines

        if self._device is None:
            raise engines.Refused("bad-request", "the first request must be 'hello'")
        settings = engines.Settings(**order["settings"])
        engine = engines.find(settings.engine)
        program = _program(order["program"])
        if order["threads"]:
            torch.set_num_threads(order["threads"])
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32
        torch.backends.cudnn.allow_tf32 = settings.tf32
        halves = settings.precision == "fp16" and engine.halves()
        generator = torch.Generator().manual_seed(0)
        examples = tuple(_example(spec, halves, generator).to(self._device) for spec in order["inputs"])
        return engine, engines.Work(
            settings=settings,
            device=self._device,
            module=lambda: self._module(program, order, halves),
            examples=examples,
            open_inputs=tuple(order["open_inputs"]),
            folder=order["folder"],
            tell=self._tell,
        )

    def _module(self, program: dict[str, Any], order: dict[str, Any], halves: bool) -> Any:
        from targets.jetson import engines, rebuild

        self._tell("read")
        weights = [_tensor(path, spec) for path, spec in zip(order["weights"], program["weights"])]
        try:
            module = rebuild.build(program, weights, self._device, order["settings"]["precision"] == "autocast")
        except rebuild.ProgramError as error:
            raise engines.Refused("bad-program", str(error)) from None
        module = module.to(self._device)
        return (module.half() if halves else module).eval()

    # --- Running --------------------------------------------------------------------------------

    def infer(self, payload: bytes) -> bytearray:
        import torch

        order, at, inputs = self._loaded(), 0, []
        data = bytearray(payload)
        for spec, example in zip(order["inputs"], self._inputs):
            dtype = _dtype(spec["dtype"])
            size = _count(spec["shape"])
            tensor = torch.frombuffer(data, dtype=dtype, count=size, offset=at).reshape(spec["shape"])
            at += size * tensor.element_size()
            inputs.append(tensor.to(self._device, example.dtype, copy=True))
        self._inputs = tuple(inputs)
        answer = bytearray()
        for tensor, dtype in zip(self._run(), self._dtypes):
            plain = tensor.detach().to("cpu", dtype).contiguous()
            answer += (ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr())
        return answer

    def measure(self, queries: int) -> bytes:
        """Seconds of each query from its call until the GPU is done, by the host's clock; then by the GPU's own."""
        import array

        import torch

        self._loaded()
        host, gpu = array.array("d"), array.array("d")
        on_gpu = self._device.type == "cuda"
        events = []
        clock, call, inputs = time.perf_counter_ns, self._call, self._inputs
        with torch.no_grad():
            self._synchronise()
            for _ in range(queries):
                if on_gpu:
                    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    events.append((begin, end))
                start = clock()
                if on_gpu:
                    begin.record()
                call(*inputs)
                if on_gpu:
                    end.record()
                    torch.cuda.synchronize()
                host.append((clock() - start) * 1e-9)
        gpu.extend(begin.elapsed_time(end) * 1e-3 for begin, end in events)
        return host.tobytes() + gpu.tobytes()

    def together(self, queries: int) -> bytes:
        """Seconds of all of them, back to back."""
        import struct

        import torch

        self._loaded()
        call, inputs = self._call, self._inputs
        with torch.no_grad():
            self._synchronise()
            begin = time.perf_counter_ns()
            for _ in range(queries):
                call(*inputs)
            self._synchronise()
            return struct.pack("<d", (time.perf_counter_ns() - begin) * 1e-9)

    def _run(self) -> tuple[Any, ...]:
        import torch

        with torch.no_grad():
            result = self._call(*self._inputs)
        self._synchronise()
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)

    def _synchronise(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _loaded(self) -> Any:
        from targets.jetson.engines import Refused

        if self._call is None:
            raise Refused("bad-request", "no program is loaded")
        return self._order


def _program(path: str) -> dict[str, Any]:
    """The program in a file, its operators being known to torch: whatever was made of it names them as well."""
    from targets.jetson import rebuild
    from targets.jetson.engines import Refused

    try:
        program = rebuild.read(path)
    except (rebuild.ProgramError, ValueError) as error:
        raise Refused("bad-program", str(error)) from None
    if rebuild.uses(program, "torch.ops.fleet."):
        _register_detection()
    if rebuild.uses(program, "torch.ops.quantized_decomposed."):
        _import("torch.ao.quantization.fx._decomposed")
    return program


def _register_detection() -> None:
    from targets.jetson.engines import Refused

    try:
        _import("targets.detection.operators")
    except Exception as error:
        raise Refused(
            "no-operators",
            f"the operators of detectors need torchvision, torch 2.4 and Python 3.9 on the board: "
            f"{type(error).__name__}: {error}",
        ) from None


def _import(name: str) -> None:
    import importlib

    importlib.import_module(name)


def _example(spec: dict[str, Any], halves: bool, generator: Any) -> Any:
    """An input to build with: numbers as pictures have them, whole numbers 0."""
    import torch

    dtype = _dtype(spec["dtype"])
    if not dtype.is_floating_point:
        return torch.zeros(spec["shape"], dtype=dtype)
    tensor = torch.rand(spec["shape"], generator=generator).to(dtype)
    return tensor.half() if halves else tensor


def _tensor(path: str, spec: dict[str, Any]) -> Any:
    """A weight, mapped from its file: pages that are written to are this process's own."""
    import torch

    return torch.from_file(path, shared=False, size=_count(spec["shape"]), dtype=_dtype(spec["dtype"])).reshape(
        spec["shape"]
    )


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _names(tensors: Any) -> str:
    names = [str(tensor.dtype).replace("torch.", "") for tensor in tensors]
    return names[0] if len(set(names)) == 1 else ", ".join(names)


def _texts(found: dict[str, Any]) -> dict[str, str]:
    return {name: " ".join(str(value).split())[:2000] for name, value in found.items()}


def _json(found: dict[str, str]) -> bytes:
    return json.dumps(_texts(found)).encode()


def _refusal(error: Exception) -> tuple[str, str]:
    """A code and words for what an engine raised."""
    words = f"{type(error).__name__}: {error}".strip()
    kind = type(error).__name__
    said = any(phrase in words for phrase in ("not enough memory", "can't allocate memory", "out of memory"))
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or said:
        return "no-memory", f"there is not enough memory: {words.splitlines()[0]}"
    return "engine-failed", words


def serve(helper: Helper, source: Any, sink: Any) -> None:
    """Answer requests until there are no more, or one is no request."""
    from targets.awake import wait_awake
    from targets.jetson import words
    from targets.jetson.engines import Refused

    while True:
        try:
            name, fields, payload = words.decode(source.read, words.REQUESTS)
        except EOFError:
            return
        except words.ProtocolError as error:
            send(sink, "error", {"code": "bad-request", "message": str(error)}, b"")
            return
        reply: dict[str, Any] = {}
        data: Any = b""
        try:
            data = helper.answer(name, fields, payload)
        except Refused as refused:
            name, reply = "error", {"code": refused.code, "message": str(refused)[:4000]}
        except Exception as error:
            import traceback

            traceback.print_exc()
            code, message = _refusal(error)
            name, reply = "error", {"code": code, "message": message[:4000]}
        del payload
        send(sink, name, reply, data)
        if name == "close":
            return
        if fields.get("awake"):
            wait_awake(source.fileno())


def send(sink: Any, name: str, fields: dict[str, Any], payload: Any) -> None:
    from targets.jetson import words

    sink.write(words.encode(name, fields, payload, words.REPLIES))
    sink.write(payload)
    sink.flush()


def main() -> None:
    # Whatever a library prints goes to the error stream, and none reads what is meant for this one.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path.pop(0)  # this file's folder is none of torch's business
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    # A compiler that is at work does not see that its input has ended.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _own_package()
    helper = Helper(lambda stage: send(sink, "progress", {"stage": stage}, b""))
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        serve(helper, source, sink)
    # Without an interpreter's tidy end: runtimes of GPUs have crashed on it after all was said.
    os._exit(0)


if __name__ == "__main__":
    main()
