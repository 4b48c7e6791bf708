"""Which files go into which run of the network, and where its outputs go."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Stands for a file in the last batch when there are none left.
PADDING = "padding_infer_fake_file"
PURE = "pure_infer_data"
SUFFIXES = (".npy", ".NPY", ".bin", ".BIN")
logger = logging.getLogger("ais_bench")


@dataclass(frozen=True)
class Batches:
    """``runs[r][i]`` are the files that input ``i`` gets in run ``r``, :data:`PADDING` where there are no more."""

    runs: tuple[tuple[tuple[str, ...], ...], ...]
    per_run: int


def natural_key(name: str) -> list[int | str]:
    """Digits compare as numbers, letters without case."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"([0-9]+)", name)]


def of_inputs(paths: Sequence[str], count: int) -> list[list[str]]:
    """The files of each of the model's ``count`` inputs.

    Raises:
        RuntimeError: files and folders mixed, another number of folders, an empty folder.
    """
    if Path(paths[0]).is_dir():
        if not all(Path(path).is_dir() for path in paths):
            logger.error("Invalid args. input path list must be all files or all dirs")
            raise RuntimeError
        if len(paths) != count:
            logger.error(f"Invalid args. args input dir num:{len(paths)} not equal to model inputs num:{count}")
            raise RuntimeError
        return [_listed(path) for path in paths]
    if not all(Path(path).is_file() for path in paths):
        logger.error("Invalid args. input path list must be all files or all dirs")
        raise RuntimeError
    share = len(paths) // count
    if not share:
        logger.error(f"Invalid args. args input file num:{len(paths)} less than model inputs num:{count}")
        raise RuntimeError
    return [list(paths[rank * share : (rank + 1) * share]) for rank in range(count)]


def _listed(folder: str) -> list[str]:
    names = sorted(found.name for found in Path(folder).iterdir() if found.name.endswith(SUFFIXES))
    if not names:
        logger.error(f"{folder} of input args not find valid file,valid file format:[*.npy *.NPY *.bin *.BIN]")
        raise RuntimeError
    return [join(folder, name) for name in sorted(names, key=natural_key)]


def join(folder: str, name: str) -> str:
    """A path as the user began it: ``./`` stays, where a Path would drop it."""
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"


def load(path: str) -> NDArray[Any]:
    """A file's values; bytes for a ``.bin``. Never unpickles."""
    if path.lower().endswith(".npy"):
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array
    return np.fromfile(path, dtype=np.int8)


def size(path: str) -> int:
    """The bytes that :func:`load` gives."""
    if path.lower().endswith(".npy"):
        return int(np.load(path, mmap_mode="r", allow_pickle=False).nbytes)
    return Path(path).stat().st_size


def batches(files: Sequence[Sequence[str]], tensor_size: int, *, single: bool) -> Batches:
    """Cut the lists into runs of as many files as fill input 0; with ``single``, one file per run.

    Raises:
        RuntimeError: a file does not divide the tensor, or the inputs have unequal numbers of files.
    """
    count = len(files[0])
    if single:
        per_run = 1
    else:
        file_size = size(files[0][0])
        if file_size == 0 or tensor_size % file_size:
            logger.error(f"arg0 tensorsize: {tensor_size} filesize: {file_size} not match")
            raise RuntimeError
        per_run = tensor_size // file_size
        runs = -(-count // per_run)
        logger.info(
            f"get filesperbatch files0 size:{file_size} tensor0size:{tensor_size} "
            f"filesperbatch:{per_run} runcount:{runs}"
        )
    if any(len(listed) != count for listed in files):
        logger.error(f"Invalid args. input file num is not equal: {[len(listed) for listed in files]}")
        raise RuntimeError
    groups = []
    for start in range(0, count, per_run):
        groups.append(
            tuple(
                tuple(listed[start : start + per_run]) + (PADDING,) * max(0, start + per_run - count)
                for listed in files
            )
        )
    return Batches(tuple(groups), per_run)


def joined(names: Sequence[str], real_size: int) -> NDArray[Any]:
    """The contents of a run's files for one input, one after the other; a padding repeats the first.

    Raises:
        RuntimeError: together they have another size than the tensor.
    """
    arrays = [load(names[0] if name == PADDING else name) for name in names]
    if len(arrays) == 1:
        return arrays[0]
    array = np.concatenate([np.atleast_1d(one) for one in arrays], axis=0)
    if array.nbytes != real_size:
        logger.error(f"ndata size:{array.nbytes} not match {real_size}")
        raise RuntimeError
    return array


def stem(path: str) -> str:
    """What an output is named after: the base name up to its first dot."""
    return Path(path).name.split(".")[0]


def save(array: NDArray[Any], folder: str, name: str, kind: str) -> str:
    """Write one output; its path."""
    written = join(folder, f"{name}.{kind.lower()}")
    path = Path(written)
    if kind == "NPY":
        with path.open("wb") as file:
            np.save(file, array)
    elif kind == "TXT":
        path.write_text(_text(array))
    else:
        path.write_bytes(np.ascontiguousarray(array).tobytes())
    path.chmod(0o640)
    return written


def _text(array: NDArray[Any]) -> str:
    form = "%f" if array.dtype.kind == "f" else "%d"
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return "".join("".join(f"{form % value} " for value in row) + "\n" for row in rows)


def parts(array: NDArray[Any], count: int, axis: int) -> list[NDArray[Any]]:
    """One output's share for each file of a run.

    Raises:
        RuntimeError: the axis cannot be divided.
    """
    if count == 1:
        return [array]
    if axis >= array.ndim or array.shape[axis] % count:
        logger.error(f"save out files error array shape:{array.shape} filesnum:{count} output_batchsize_axis:{axis}")
        raise RuntimeError
    return np.array_split(array, count, axis)
