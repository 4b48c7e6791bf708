"""A user's torch module as one exported program: torchvision's detectors whole, other modules as they are."""

from __future__ import annotations

import contextlib
import io
import logging
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from controller.zoo import export
from controller.zoo.described import MEMBER, Description
from targets.base import ModelError

#: Packages whose code runs when a module is traced, besides the module's own.
_TRACING = ("torch", "torchvision", "functorch", "sympy", "numpy")
_DETECTORS = ("FasterRCNN", "MaskRCNN", "SSD")


class Exportable(NamedTuple):
    """What ``torch.export`` is given, and what the file says of it."""

    network: Any
    examples: tuple[Any, ...]
    description: Description


def exportable(
    module: Any,
    *,
    examples: Sequence[Any] = (),
    size: tuple[int, int] | None = None,
    pasted: bool = False,
    labels: Iterable[str] = (),
) -> Exportable:
    """Make a torch module ready: a ``GeneralizedRCNN`` or a ``SSD`` of torchvision becomes the whole detector.

    ``examples`` are what another module takes; detectors know it. ``size`` (height, width) is what pictures are fitted
    into before an R-CNN, its ``min_size`` if nothing is said; ``pasted``: its masks are of the size of its input.
    ``labels`` name the classes from 0, without a background.

    Raises :class:`ModelError` (``bad-model``) that says which part cannot be.
    """
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
    from torchvision.models.detection.ssd import SSD

    module = module.eval().cpu()
    names = tuple(labels)
    if isinstance(module, GeneralizedRCNN):
        return _rcnn(module, size, pasted, names)
    if size or pasted:
        raise ModelError(
            f"a {type(module).__name__} has one size and form", hint="R-CNNs of torchvision can be made for any size"
        )
    if isinstance(module, SSD):
        return _ssd(module, names)
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torchvision.models.detection")]
    if kinds and not examples:
        raise ModelError(
            f"a {kinds[0].__name__} of torchvision cannot be exported as a whole",
            hint=f"these can: {', '.join(_DETECTORS)}; of others the part from tensors to tensors, with example inputs",
        )
    return Exportable(module, _tensors(examples, module), Description(labels=names))


def program(made: Exportable) -> bytes:
    """The bytes of the ``.pt2`` file, its description included.

    Raises :class:`ModelError` (``bad-model``) that says what torch cannot export, and at which line of whose source.
    """
    try:
        with _quietly():
            return export.exported(made.network, made.examples, {MEMBER: made.description.text()})
    except Exception as error:
        # Tracing runs the user's code: anything may be raised, by it or by torch about it.
        raise ModelError(
            f"torch.export cannot take down this {type(made.network).__name__}: {_first_line(error)}{at(error)}",
            hint="shapes and branches must not depend on values: replace that, or export the part around it",
        ) from error


def at(error: BaseException) -> str:
    """Where a user's code raised an error: `` at line 3 of net.py: `x[0].item()` ``; empty if torch alone did."""
    packages = Path(sysconfig.get_path("purelib"))
    python = Path(sysconfig.get_path("stdlib"))
    tracing = [Path(__file__).parents[1], *(packages / name for name in _TRACING)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_file() or (python in path.parents and packages not in path.parents):
            continue
        if not any(folder in path.parents for folder in tracing):
            return f" at line {frame.lineno} of {path.name}: `{frame.line}`"
    return ""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the pages that torch logs and prints of what it cannot trace: the error says it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before, logger.disabled = logger.disabled, True
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logger.disabled = before


def _rcnn(module: Any, size: tuple[int, int] | None, pasted: bool, labels: tuple[str, ...]) -> Exportable:
    from controller.zoo import rcnn

    side = int(module.transform.min_size[-1])
    wide, high = module.transform.fixed_size or (side, side)
    preprocess = rcnn.preprocess(size or (high, wide), module)
    whole = rcnn.ExportableRcnn(module, preprocess.canvas, pasted=pasted)
    description = Description(preprocess, rcnn.postprocess(module), labels, rcnn.outputs(module))
    return Exportable(whole, export.examples(preprocess, sizes=True), description)


def _ssd(module: Any, labels: tuple[str, ...]) -> Exportable:
    from controller.zoo import ssd, ssd_torchvision

    ssd_torchvision.check(module)
    how = ssd_torchvision.decoding(module)
    preprocess = ssd_torchvision.preprocess(module)
    whole = ssd.Ssd(ssd_torchvision.Dense(module), how).eval()
    return Exportable(whole, export.examples(preprocess), Description(preprocess, how.whole(), labels, ssd.OUTPUTS))


def _tensors(examples: Sequence[Any], module: Any) -> tuple[Any, ...]:
    import torch

    if not examples or not all(isinstance(each, torch.Tensor) and each.ndim for each in examples):
        raise ModelError(
            f"to export a {type(module).__name__}, example inputs are needed: tensors with a first dimension",
            hint="let the function return them too: return module, (torch.zeros(2, 3, 224, 224),)",
        )
    return tuple(each.cpu() for each in examples)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
