"""What a network is calibrated on before it is made integers: pictures, arrays, the zoo's samples, or noise."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from targets.base import FleetError, Preprocess, SourceModel, TensorSpec
from targets.files import hash_file

if TYPE_CHECKING:
    from PIL import Image

    from targets.base import Array

#: How many samples are made where none are given, and how many of a folder are taken at most.
COUNT = 16
MOST = 256
#: Bytes of all arrays of a file together, uncompressed.
MAX_BYTES = 2 << 30
#: Sample inputs are numbered from here: the golden inputs have the first numbers, and must not be calibrated on.
FIRST = 1000


class Calibration(msgspec.Struct, frozen=True):
    """Where sample inputs come from. ``words`` says it in a bundle: what was in a file, not where it lay."""

    kind: Literal["pictures", "arrays", "zoo", "random"]
    words: str
    #: The folder of ``pictures``, the ``.npz`` file of ``arrays``, the network of the ``zoo``.
    source: str = ""


def choose(model: SourceModel, option: str) -> Calibration:
    """What the option ``calibration`` asks for: a folder of pictures, an ``.npz`` file, or, empty, the model's own.

    Cheap but for hashing files: what was in them is part of the build cache's key. Raises :class:`FleetError`
    ``bad-calibration``.
    """
    if not option:
        return _default(model)
    path = Path(option).expanduser()
    if path.is_dir():
        files = _pictures(path)
        digest = hashlib.sha256("".join(hash_file(file) for file in files).encode()).hexdigest()
        return Calibration("pictures", f"{len(files)} pictures, sha256 {digest}", str(path.absolute()))
    if path.suffix == ".npz" and path.is_file():
        return Calibration("arrays", f"{path.name}, sha256 {hash_file(path)}", str(path.absolute()))
    raise _bad(f"'{option}' is neither a folder of pictures nor an .npz file")


def inputs(chosen: Calibration, model: SourceModel, specs: Sequence[TensorSpec]) -> Iterator[list[Array]]:
    """Sample inputs in the shapes and dtypes of ``specs``, whose first dimension is the batch.

    Raises :class:`FleetError`: ``bad-calibration``, ``bad-picture``.
    """
    import numpy as np

    if chosen.kind == "random":
        from controller.golden import sample

        for index in range(COUNT):
            yield [sample(spec, FIRST + index, model.preprocess, model.postprocess) for spec in specs]
        return
    if chosen.kind == "arrays":
        stacks = _arrays(Path(chosen.source), specs)
    elif chosen.kind == "pictures":
        stacks = _prepared(Path(chosen.source), model, specs)
    else:
        stacks = _zoo(chosen.source, model, specs)
    _check(stacks, specs)
    batch = specs[0].shape[0]
    for start in range(0, len(stacks[0]), batch):
        # The last batch is filled with the first samples.
        rows = np.arange(start, start + batch) % len(stacks[0])
        yield [np.ascontiguousarray(stack[rows]) for stack in stacks]


def files_of(chosen: Calibration | None) -> dict[str, bytes]:
    """The files that a build elsewhere needs, by name."""
    if chosen is None or chosen.kind not in ("pictures", "arrays"):
        return {}
    path = Path(chosen.source)
    return {file.name: file.read_bytes() for file in (_pictures(path) if path.is_dir() else [path])}


def with_files(chosen: Calibration | None, files: Mapping[str, bytes], folder: Path) -> Calibration | None:
    """The same calibration with those files, which are written to ``folder``."""
    if chosen is None or not files:
        return chosen
    folder.mkdir()
    for name, data in files.items():
        (folder / Path(name).name).write_bytes(data)
    source = folder if chosen.kind == "pictures" else folder / Path(next(iter(files))).name
    return msgspec.structs.replace(chosen, source=str(source))


def _default(model: SourceModel) -> Calibration:
    from controller import zoo

    words = model.origin.split()
    name = words[0].removeprefix("zoo:") if words else ""
    if model.preprocess is not None and words and words[0].startswith("zoo:") and zoo.has(name):
        return Calibration("zoo", f"{COUNT} sample pictures of the zoo's {name}, seed {FIRST}", name)
    kind = "noise and blots as pictures" if model.preprocess is not None else "noise"
    return Calibration("random", f"{COUNT} random inputs ({kind}), seed {FIRST}")


def _pictures(folder: Path) -> list[Path]:
    from targets.pictures import read

    try:
        return read.folder(folder)[:MOST]
    except FleetError as error:
        raise _bad(error.message, error.hint) from None


def _prepared(folder: Path, model: SourceModel, specs: Sequence[TensorSpec]) -> list[Array]:
    from targets.pictures.read import load

    if model.preprocess is None:
        raise _bad(
            f"{model.name} does not say how it takes pictures", "give an .npz file, or a preprocess in the inventory"
        )
    return _stacks(map(load, _pictures(folder)), model.preprocess, specs)


def _zoo(name: str, model: SourceModel, specs: Sequence[TensorSpec]) -> list[Array]:
    from controller import zoo

    assert model.preprocess is not None
    return _stacks(zoo.samples(name, COUNT, FIRST), model.preprocess, specs)


def _stacks(images: Iterable[Image.Image], preprocess: Preprocess, specs: Sequence[TensorSpec]) -> list[Array]:
    """The pictures prepared, and their sizes where a model takes these."""
    import numpy as np

    from targets.pictures.place import place
    from targets.pictures.prepare import SIZES, prepare, sizes

    prepared, inside = [], []
    for image in images:
        prepared.append(prepare(image, preprocess))
        inside.append(sizes(place(image.size, preprocess)))
    stacks: list[Array] = [np.concatenate(prepared)]
    if len(specs) > 1 and specs[1].name == SIZES:
        stacks.append(np.array(inside, specs[1].dtype))
    return stacks


def _arrays(path: Path, specs: Sequence[TensorSpec]) -> list[Array]:
    """One array for each input, by name, or in the file's order when no name fits."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise _bad(f"{path} holds {size >> 20} MB; {MAX_BYTES >> 20} MB are the most")
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _bad(f"{path} cannot be read: {error}") from None
    if len(found) != len(specs):
        raise _bad(f"{path} has {len(found)} arrays for {len(specs)} inputs")
    by_name = all(spec.name in found for spec in specs)
    return [found[spec.name] for spec in specs] if by_name else list(found.values())


def _check(stacks: Sequence[Array], specs: Sequence[TensorSpec]) -> None:
    import numpy as np

    if len(stacks) != len(specs):
        raise _bad(f"there are samples for {len(stacks)} inputs, the model takes {len(specs)}")
    for stack, spec in zip(stacks, specs, strict=True):
        wanted = spec.shape[1:]
        if stack.ndim != len(spec.shape) or stack.shape[1:] != wanted or not len(stack):
            raise _bad(
                f"the samples of input '{spec.name}' have shape {list(stack.shape)}",
                f"a number of samples, then {list(wanted)}",
            )
        if stack.dtype.name != spec.dtype:
            raise _bad(f"the samples of input '{spec.name}' are {stack.dtype.name}", f"make them {spec.dtype}")
        if np.issubdtype(stack.dtype, np.floating) and not np.isfinite(stack).all():
            raise _bad(f"the samples of input '{spec.name}' are not all finite")
        if len(stack) != len(stacks[0]):
            raise _bad(f"input '{spec.name}' has {len(stack)} samples, others have {len(stacks[0])}")


def _bad(
    what: str, hint: str = "give a folder of pictures, or an .npz file with an array for each input"
) -> FleetError:
    return FleetError(f"calibration: {what}", code="bad-calibration", hint=hint)
