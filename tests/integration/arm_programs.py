"""Kernels compiled for an ARM board, linked into a program that needs no TVM, and run by an emulator of its processor.

The kernels are the very functions that a release has, called through the interface that the runtime calls them by; the
program has what they need of the runtime, writes wrong numbers to all memory before they get it, and runs the tasks of
a parallel loop one after the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
import tvm_ffi.libinfo

from targets.cpu.compile import tvm_target
from targets.cpu.machine import ARM64_MACHINE, ARMV7_MACHINE, Machine
from targets.zig import cache_folder

Numbers = npt.NDArray[Any]

#: A processor of each machine that the emulator knows, Zig's name of a C library to link with statically, the emulator.
EMULATED: dict[str, tuple[Machine, str, str, str]] = {
    "aarch64": (ARM64_MACHINE, "cortex-a76", "aarch64-linux-musl", "qemu-aarch64-static"),
    "armv7l": (ARMV7_MACHINE, "cortex-a9", "arm-linux-musleabihf", "qemu-arm-static"),
}
RUN_DEADLINE = 240.0

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

enum { GUARD = 64, WRONG = 0xff };

static void *allocate(size_t bytes) {
  size_t whole = (bytes + 2 * GUARD + 63) / 64 * 64;
  char *at = aligned_alloc(64, whole);
  if (!at) abort();
  memset(at, WRONG, whole);
  return at + GUARD;
}

static int whole(const unsigned char *at, size_t bytes) {
  for (int i = 0; i < GUARD; i++)
    if (at[i - GUARD] != WRONG || at[bytes + i] != WRONG) return 0;
  return 1;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++)
    if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

static int launch(FTVMParallelLambda task, void *closure, int count) {
  TVMParallelGroupEnv env = {.sync_handle = NULL, .num_task = count ? count : 3};
  for (int i = env.num_task; i-- > 0;)
    if (task(i, &env, closure)) return -1;
  return 0;
}

static void *workspace(int type, int id, uint64_t bytes, int code, int bits) { return allocate(bytes); }
static int release(int type, int id, void *at) { free((char *)at - GUARD); return 0; }

void *__TVMBackendParallelLaunch = (void *)launch;
void *__TVMBackendAllocWorkspace = (void *)workspace;
void *__TVMBackendFreeWorkspace = (void *)release;

typedef struct { DLDataType type; int dimensions; int64_t shape[8]; size_t bytes; } Argument;
typedef struct { const char *name; TVMFFISafeCallType call; int count; const Argument *arguments; } Kernel;

#include "kernels.h"

int main(int argc, char **argv) {
  FILE *given = fopen(argv[1], "rb"), *made = fopen(argv[2], "wb");
  if (!given || !made) return 2;
  for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
    const Kernel *kernel = &kernels[k];
    DLTensor tensors[16] = {0};
    TVMFFIAny values[16] = {0}, result = {0};
    for (int i = 0; i < kernel->count; i++) {
      const Argument *argument = &kernel->arguments[i];
      tensors[i].data = allocate(argument->bytes);
      if (fread(tensors[i].data, 1, argument->bytes, given) != argument->bytes) return 2;
      tensors[i].device.device_type = kDLCPU;
      tensors[i].ndim = argument->dimensions;
      tensors[i].dtype = argument->type;
      tensors[i].shape = (int64_t *)argument->shape;
      values[i].type_index = kTVMFFIDLTensorPtr;
      values[i].v_ptr = &tensors[i];
    }
    fprintf(stderr, "%s\n", kernel->name);
    if (kernel->call(NULL, values, kernel->count, &result)) return 1;
    for (int i = 0; i < kernel->count; i++) {
      if (!whole(tensors[i].data, kernel->arguments[i].bytes)) {
        fprintf(stderr, "wrote beyond argument %d\n", i);
        return 1;
      }
    }
    size_t bytes = kernel->arguments[kernel->count - 1].bytes;
    if (fwrite(tensors[kernel->count - 1].data, 1, bytes, made) != bytes) return 2;
    for (int i = 0; i < kernel->count; i++) release(0, 0, tensors[i].data);
  }
  return fclose(made) ? 2 : 0;
}
"""


@dataclass(frozen=True)
class Call:
    """A kernel with its arguments; the last one is written."""

    name: str
    function: Any
    arguments: tuple[Numbers, ...]


def run(uname: str, calls: Sequence[Call], folder: Path) -> list[Numbers]:
    """What each call writes. Skips the test where there is no emulator."""
    machine, processor, triple, emulator = EMULATED[uname]
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed: apt-get install qemu-user-static")
    functions = {call.name: call.function.with_attr("global_symbol", call.name) for call in calls}
    executable: Any = tvm.compile(tvm.IRModule(functions), target=tvm_target(machine, machine.processor(processor)))
    executable.mod.write_to_file(str(folder / "kernels.o"))
    (folder / "kernels.h").write_text(_table(calls))
    (folder / "main.c").write_text(PROGRAM)
    _link(triple, folder)
    (folder / "given").write_bytes(b"".join(a.tobytes() for call in calls for a in call.arguments))
    # What the processor lacks, the emulator refuses.
    files = [str(folder / file) for file in ("program", "given", "made")]
    command = [emulator, "-cpu", processor, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_DEADLINE)
    assert done.returncode == 0, f"exit status {done.returncode} after: {done.stderr[-500:]}"
    made = (folder / "made").read_bytes()
    results, at = [], 0
    for call in calls:
        like = call.arguments[-1]
        results.append(np.frombuffer(made, like.dtype, like.size, at).reshape(like.shape))
        at += like.nbytes
    assert at == len(made)
    return results


def _table(calls: Sequence[Call]) -> str:
    """The C tables of the kernels and of their arguments."""
    codes = {"f": 2, "i": 0, "u": 1}
    lines: list[str] = []
    for call in calls:
        arguments = ", ".join(
            f"{{{{{codes[a.dtype.kind]}, {a.dtype.itemsize * 8}, 1}}, {a.ndim}, "
            f"{{{', '.join(map(str, a.shape))}}}, {a.nbytes}}}"
            for a in call.arguments
        )
        lines.append(f"int __tvm_ffi_{call.name}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);")
        lines.append(f"static const Argument {call.name}[] = {{{arguments}}};")
    rows = (f'  {{"{c.name}", __tvm_ffi_{c.name}, {len(c.arguments)}, {c.name}}},' for c in calls)
    return "\n".join([*lines, "static const Kernel kernels[] = {", *rows, "};", ""])


def _link(triple: str, folder: Path) -> None:
    includes = {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
    includes.add(str(Path(tvm.__file__).parent / "include"))
    command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-static", "-O1", "-std=c11", "-w"]
    command += [f"-I{path}" for path in sorted(includes)]
    command += [str(folder / name) for name in ("main.c", "kernels.o")] + ["-lm", "-o", str(folder / "program")]
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_DEADLINE)
    assert done.returncode == 0, done.stderr[-2000:]
