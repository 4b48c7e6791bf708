"""Compiled models that a board keeps: by what is in the bundle, the flags, the chip and CANN's version."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from targets.ascend import atc
from targets.ascend.onnx_parts import join
from targets.ascend.plan import AIPP, GRAPH, HEAD, Plan
from targets.ascend.process import OnLine, OnWait
from targets.ascend.toolkit import Toolkit
from targets.files import disk_errors

if TYPE_CHECKING:
    from targets.base import LoadedBundle

#: Compiled models that are kept; of more, those that were not used for longest are removed.
KEPT = 16


def key(plan: Plan, digests: dict[str, str], soc_version: str, toolkit: Toolkit) -> str:
    """Names a compiled model: all that ATC's result depends on. ``digests`` are those of the bundle's files."""
    files = {name: digests[name] for name in (HEAD, GRAPH, *((AIPP,) if plan.aipp else ()))}
    # Two bundles that differ in the batch they ask of a model with several share it.
    flags = atc.command(plan, "atc", soc_version)
    weights = [[one.name, one.dims, one.type, digests[one.file]] for one in plan.tensors]
    parts = json.dumps([files, flags, weights, toolkit.version], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class OmCache:
    """Compiled models in a folder, each with ATC's log. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_errors("compiled models"):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def get(
        self,
        bundle: LoadedBundle,
        plan: Plan,
        soc_version: str,
        toolkit: Toolkit,
        scratch: Path,
        on_line: OnLine,
        on_wait: OnWait = lambda _: None,
    ) -> tuple[Path, bool]:
        """The compiled model of a bundle, and whether it was here already. Raises as `atc.compile_model` does."""
        digests = {file.path: file.sha256 for file in bundle.manifest.files}
        name = key(plan, digests, soc_version, toolkit)
        path = self._folder / f"{name}.om"
        with self._turn(name):
            if path.is_file() and path.stat().st_size:
                os.utime(path)
                return path, True
            work = scratch / "atc"
            with disk_errors("the network's ONNX file"):
                work.mkdir(mode=0o755)
            try:
                join(
                    bundle.path(HEAD).read_bytes(),
                    bundle.path(GRAPH).read_bytes(),
                    plan.tensors,
                    bundle.path,
                    work / atc.MODEL,
                )
                if plan.aipp:
                    with disk_errors("the configuration of AIPP"):
                        (work / atc.AIPP).write_bytes(bundle.path(AIPP).read_bytes())
                with disk_errors("the compiled model"):
                    log = path.with_suffix(".log")
                    made = atc.compile_model(plan, toolkit, soc_version, work, log, on_line, on_wait)
                    made.replace(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._forget()
        return path, False

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """What two want is compiled once."""
        with disk_errors("a lock"):
            handle = os.open(self._folder / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _forget(self) -> None:
        found = sorted(self._folder.glob("*.om"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEPT:]:
            for each in (path, path.with_suffix(".log"), path.with_suffix(".lock")):
                each.unlink(missing_ok=True)
