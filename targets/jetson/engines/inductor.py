"""AOTInductor: the exported program compiled to a library of its own, weights included."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from targets.jetson.engines import Refused, Work, exported, layer_dtypes, weight_dtypes, wrapped

_FILE = "program.pt2"


def available() -> str:
    """Why this engine is not there; empty when it is."""
    if not hasattr(getattr(torch, "_inductor", None), "aoti_compile_and_package"):
        return f"torch {torch.__version__} cannot compile ahead of time; 2.6 and newer can"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "there is no C++ compiler (g++), which Inductor needs"
    return ""


def halves() -> bool:
    return True


def build(work: Work) -> dict[str, str]:
    module = wrapped(work).eval()
    work.tell("export")
    program = exported(module, work)
    work.tell("compile")
    path = str(Path(work.folder, _FILE))
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    except TypeError as error:
        raise Refused("too-old", f"the compiler of torch {torch.__version__} takes other arguments: {error}") from error
    # Inductor keeps the types of the program that it is given.
    return {"weight_dtype": weight_dtypes(module), "layer_dtypes": layer_dtypes(program.module(), work.examples)}


def load(work: Work) -> tuple[Any, dict[str, str]]:
    return torch._inductor.aoti_load_package(str(Path(work.folder, _FILE))), {}
