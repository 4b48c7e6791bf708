"""Models that a user's own Python function makes: ``package.module:function``, and ``.pt2`` files of detectors.

The function takes nothing and returns a ``torch.nn.Module``, or such a module and example inputs for it, a tuple of
tensors. Detectors of torchvision (Faster and Mask R-CNNs, SSDs) need no examples: they become whole detectors that find
boxes inside. Other modules are exported as they are; where the examples' first dimension, the batch, is 2 or more, it
stays open. A module's own ``labels``, if it has them, name the classes from 0, without a background.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.zoo import described, export, variants
from targets import pt2_model
from targets.base import ModelError, SourceModel
from targets.files import disk_errors, make_directory, write_atomic

if TYPE_CHECKING:
    from controller.home import Home

_NAME = r"[^\W\d]\w*"
_ENTRY = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})(@.*)?")
_VARIANTS = {"pasted": "masks in the size of an R-CNN's input, laid there inside"}
#: Smallest and largest side that an R-CNN is made for.
_SIDES = (32, 4096)


def is_entry(text: str) -> bool:
    """Whether a model's name is a function's: ``package.module:function``, maybe with variants, ``@300,pasted``."""
    return _ENTRY.fullmatch(text) is not None


def source(text: str, home: Home) -> SourceModel:
    """Import and call a user's function, from the current folder or what is installed, and export what it makes.

    Raises:
        ModelError: ``unknown-model`` when there is no such module or function; ``bad-model`` when it fails, returns no
            module, or what it returns cannot be exported.
        FleetError: ``torch-missing``.
    """
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise ModelError(f"'{text}' is no package.module:function", code="unknown-model")
    module_name, function_name, _ = match.groups()
    name, words, size = variants.parse(function_name + (match[3] or ""), _VARIANTS, sizes=_SIDES)
    export.require_torch()
    from controller.zoo import exportable

    # What a user's code prints is for the person, and no part of a command's answer.
    with _importing(Path.cwd()), contextlib.redirect_stdout(sys.stderr):
        module, examples = _made(text, module_name, name)
        labels = _labels(text, module)
        made = exportable.exportable(module, examples=examples, size=size, pasted="pasted" in words, labels=labels)
        data = exportable.program(made)
    digest = hashlib.sha256(data).hexdigest()
    folder = home.cache / "sources"
    path = folder / f"{digest}.pt2"
    if not path.exists():
        with disk_errors(path.name):
            make_directory(folder)
            write_atomic(path, data)
    return pt2(path, name=function_name + (match[3] or ""), origin=f"python:{text}", sha256=digest)


def pt2(path: Path, *, name: str, origin: str, sha256: str) -> SourceModel:
    """The source that a ``.pt2`` file is, with what it says of itself. Raises :class:`ModelError`."""
    program = pt2_model.read(path)
    about = described.read(path, program)
    inputs, outputs = program.inputs, program.outputs
    if about.preprocess is not None:
        inputs = (_replace(inputs[0], layout=about.preprocess.layout), *inputs[1:])
    if about.outputs:
        outputs = tuple(_replace(spec, name=output) for spec, output in zip(outputs, about.outputs, strict=True))
    return SourceModel(
        name=name,
        format="pt2",
        path=str(path.absolute()),
        sha256=sha256,
        origin=origin,
        inputs=inputs,
        outputs=outputs,
        preprocess=about.preprocess,
        postprocess=about.postprocess,
        labels=about.labels,
    )


def export_detector(
    model: Any,
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    pasted: bool = False,
    labels: Iterable[str] = (),
) -> Path:
    """Write a detector of torchvision as a ``.pt2`` file that ``fleet`` takes: ``my_maskrcnn.pt2``.

    Args:
        model: a ``FasterRCNN``, ``MaskRCNN``, any other ``GeneralizedRCNN`` of such parts, or a ``SSD``. It is put into
            evaluation, on the CPU.
        size: what pictures are fitted into before an R-CNN: a side, or (height, width); its ``min_size`` by default.
        pasted: whether masks are of the size of the input, instead of within each box.
        labels: names of the classes from 0, without a background.

    Raises :class:`ModelError` that says which part cannot be exported.
    """
    from controller.zoo import exportable

    sides = (size, size) if isinstance(size, int) else size
    made = exportable.exportable(model, size=sides, pasted=pasted, labels=labels)
    data, path = exportable.program(made), Path(path)
    with disk_errors(path.name):
        write_atomic(path, data)
    return path


def _made(text: str, module_name: str, function_name: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    from controller.zoo.exportable import at

    try:
        importlib.invalidate_caches()
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"there is no Python module '{error.name}' for model '{text}'",
                code="unknown-model",
                hint=f"modules are looked for in {Path.cwd()} and among what is installed",
            ) from None
        raise ModelError(f"importing {module_name} failed: {error}{at(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {module_name} failed: {_said(error)}{at(error)}") from error
    function = getattr(found, function_name, None)
    if not callable(function):
        has = sorted(name for name, each in vars(found).items() if getattr(each, "__module__", "") == module_name)
        raise ModelError(
            f"{module_name} has no function '{function_name}'",
            code="unknown-model",
            hint=f"it has: {', '.join(has[:20])}" if has else "",
        )
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{text} failed: {_said(error)}{at(error)}") from error
    module, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, ())
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{text} returned {type(module).__name__}, no torch.nn.Module",
            hint="return a module, or a module and a tuple of example inputs",
        )
    return module, (examples,) if isinstance(examples, torch.Tensor) else tuple(examples)


def _labels(text: str, module: Any) -> tuple[str, ...]:
    labels = getattr(module, "labels", ())
    if isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels):
        return tuple(labels)
    raise ModelError(f"the labels of what {text} returned are no list of strings")


@contextlib.contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """Modules of ``folder`` can be imported, as with ``python -m``."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}".removesuffix(": ")


def _replace(spec: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(spec, **changes)
