"""The simulator's loop as machine code: compiled once for each processor and block size, and kept.

numba compiles it (:mod:`targets.vta.kernels`), which takes seconds; importing numba alone takes longer than simulating
a whole ResNet-18. So the machine code is kept as an object file, and LLVM's own binding, which is quick to import,
links it. The file's name has a digest of everything that it depends on. It lies where Python would keep its own
compiled files: in ``__pycache__`` beside the sources; where that cannot be written, in ``fleet``'s cache directory
(``$FLEET_HOME/cache``, else as XDG has it); where nothing can be written it is compiled again in each process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numpy as np

from targets.files import write_atomic

if TYPE_CHECKING:
    import numpy.typing as npt

#: What the loop is made of.
_SOURCES = (
    *("kernels.py", "kernel_compute.py", "kernel_memory.py", "vectors.py"),
    *("kernel_abi.py", "isa.py", "config.py", "native.py"),
)
#: Of the compiled loop: numba's own convention, where the result and an exception go first.
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    *(_POINTER, _POINTER),  # result, exception
    *(_POINTER, _INTEGER, _POINTER, _POINTER),  # table, its rows, queue, ends
    *(_POINTER,) * 6,  # uop, known, inp, wgt, acc, out
    *(_POINTER, _POINTER, _INTEGER),  # memory as bytes and as words, its size
    *(_POINTER, _POINTER, _INTEGER),  # shape, state, budget
)

#: numba would call this for an array whose last reference is gone. All arrays here are the caller's: none has a count.
_NO_COUNTS = "define void @NRT_MemInfo_call_dtor(ptr %0) { ret void }"


class Loop:
    """:func:`targets.vta.kernels.execute` for blocks of ``block`` channels. Lets other threads run meanwhile."""

    def __init__(self, block: int) -> None:
        name, code = _object(block)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._function = _PROTOTYPE(self._engine.get_function_address(name))

    def __call__(
        self,
        table: npt.NDArray[np.int64],
        queue: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        memories: Sequence[npt.NDArray[Any]],
        dram: npt.NDArray[np.uint8],
        shape: npt.NDArray[np.int64],
        state: npt.NDArray[np.int64],
        budget: int,
    ) -> int:
        """Arguments as ``execute`` has them, all contiguous; ``dram`` aligned to 4 bytes. Returns a ``Status``."""
        result, exception = ctypes.c_int64(-1), ctypes.c_void_p()
        failed = self._function(
            ctypes.addressof(result),
            ctypes.addressof(exception),
            table.ctypes.data,
            len(table),
            queue.ctypes.data,
            ends.ctypes.data,
            *(memory.ctypes.data for memory in memories),
            dram.ctypes.data,
            dram.ctypes.data,
            dram.size,
            shape.ctypes.data,
            state.ctypes.data,
            budget,
        )
        if failed:
            raise RuntimeError(f"the simulator's compiled loop returned {failed}")
        return result.value


@lru_cache(maxsize=8)
def loop(block: int) -> Loop:
    """The loop for a block size; of each there is one in a process."""
    return Loop(block)


def _object(block: int) -> tuple[str, bytes]:
    """The loop's name and the object file that has it, kept or compiled now."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    kind = f"vta-loop-{block}-{_digest(*_processor())[:16]}-"
    file_name = f"{kind}{_digest(version('numba'), version('llvmlite'), *_sources())}.o"
    folders = list(_folders())
    for folder in folders:
        found = _read(folder / file_name)
        if found is not None:
            return found
    name, code = _compile(block)
    data = name.encode() + b"\n" + code
    for folder in folders:
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for stale in folder.glob(f"{kind}*.o"):
                stale.unlink(missing_ok=True)
            write_atomic(folder / file_name, hashlib.sha256(data).digest() + data)
        except OSError:
            continue  # read-only, full, or somebody else's: the next one
        break
    return name, code


def _folders() -> Iterator[Path]:
    """Where the object may be kept, best first. Machine code is believed only from folders that are one's own."""
    folders = [Path(__file__).parent / "__pycache__"]
    home, cache = os.environ.get("FLEET_HOME", ""), os.environ.get("XDG_CACHE_HOME", "")
    if home:
        folders.append(Path(home).expanduser().absolute() / "cache")
    elif cache.startswith("/"):
        folders.append(Path(cache) / "fleet")
    else:
        folders.append(Path("~/.cache/fleet").expanduser())
    for folder in folders:
        try:
            owner = folder.stat().st_uid
        except OSError:
            owner = os.geteuid()  # not there yet
        if owner in (0, os.geteuid()):
            yield folder


def _read(path: Path) -> tuple[str, bytes] | None:
    """What a file has; None when it is not there, or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    name, _, code = data[32:].partition(b"\n")
    return name.decode(), code


def _compile(block: int) -> tuple[str, bytes]:
    from targets.vta.kernels import compiled_loop

    compiled = compiled_loop(block)
    (signature,) = compiled.signatures
    module = llvm.parse_assembly(compiled.inspect_llvm(signature))
    module.link_in(llvm.parse_assembly(_NO_COUNTS))
    return compiled.overloads[signature].fndesc.llvm_func_name, _target_machine().emit_object(module)


def _target_machine() -> llvm.TargetMachine:
    """A machine as numba makes them: this processor, all that it can do."""
    triple, cpu, features = _processor()
    return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


def _processor() -> tuple[str, str, str]:
    """LLVM's names for the platform, the processor and what that can do."""
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _sources() -> Iterator[str]:
    for name in _SOURCES:
        yield (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]
