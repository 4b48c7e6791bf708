"""A torch network of the zoo as one ``.pt2`` file, made once for the same definition and weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controller.zoo import weights
from targets import pt2_model
from targets.base import FleetError, Postprocess, Preprocess, SourceModel
from targets.files import disk_errors, hash_file, make_directory, write_atomic

if TYPE_CHECKING:
    from controller.home import Home

MAX_BATCH = 1024
#: Version of how networks are exported; changes whenever a file made before would differ.
EXPORT = "open-batch"


def require_torch() -> None:
    """Raises :class:`FleetError` with code ``torch-missing`` when torch cannot be imported."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise FleetError(
            f"this needs PyTorch, which cannot be imported: {error}",
            code="torch-missing",
            hint="make setup, or pip install 'fleet-edge[torch]'",
        ) from None


def pt2_source(
    name: str,
    chosen: weights.Weights,
    *,
    build: Callable[[], Any],
    said: str,
    definition: str,
    preprocess: Preprocess,
    postprocess: Postprocess | None,
    labels: tuple[str, ...],
    home: Home,
    outputs: tuple[str, ...] = (),
    rename: Callable[[str], str] | None = None,
    around: Callable[[Any], Any] | None = None,
    load: Callable[[Path], Mapping[str, Any]] = weights.load_state,
    sizes: bool = False,
) -> SourceModel:
    """Make ``build()``'s network with weights from a file or a seed, and export it.

    ``said`` is how the origin names the weights; ``definition`` is the version of what ``build`` defines;
    ``outputs`` names what the network gives where torch's names say nothing; ``rename`` makes a parameter's name of
    what the original's files call it; ``around`` makes what is exported of the network that has its weights;
    ``load`` reads the tensors of a file by name; with ``sizes`` the network takes these too, after the pictures.
    """
    require_torch()
    import torch

    made = f"random:{chosen.seed}" if chosen.kind == "random" else hash_file(chosen.path)
    key = hashlib.sha256("\n".join((name, definition, EXPORT, torch.__version__, made)).encode()).hexdigest()
    folder = home.cache / "zoo"
    path = folder / f"{name}-{key[:16]}.pt2"
    if not path.exists():
        # The seed must not be felt by anything else in this process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen.seed if chosen.kind == "random" else 0)
            network = build().eval()
        if chosen.kind == "file":
            state = load(chosen.path)
            if rename is not None:
                state = {rename(key): tensor for key, tensor in state.items()}
            weights.fit(network, state, f"'{chosen.path}'")
        if around is not None:
            network = around(network).eval()
        data = exported(network, examples(preprocess, sizes=sizes))
        with disk_errors(path.name):
            make_directory(folder)
            write_atomic(path, data)
    program = pt2_model.read(path)
    given = program.outputs
    if outputs:
        given = tuple(msgspec.structs.replace(spec, name=output) for spec, output in zip(given, outputs, strict=True))
    images, *others = program.inputs
    return SourceModel(
        name=name,
        format="pt2",
        path=str(path),
        sha256=hash_file(path),
        origin=f"zoo:{name} weights={said}",
        inputs=(msgspec.structs.replace(images, layout=preprocess.layout), *others),
        outputs=given,
        preprocess=preprocess,
        postprocess=postprocess,
        labels=labels,
    )


def examples(preprocess: Preprocess, *, sizes: bool = False) -> tuple[Any, ...]:
    """Two blank pictures as a network takes them, and their ``sizes`` in them if it takes these too."""
    import torch

    height, width = preprocess.canvas if any(preprocess.canvas) else preprocess.size
    images = torch.zeros(2, len(preprocess.mean), height, width)
    if not sizes:
        return (images,)
    return images, torch.tensor([preprocess.size] * 2, dtype=torch.float32)


def exported(network: Any, given: tuple[Any, ...], extra: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a ``.pt2`` file of ``network``, with ``extra`` texts.

    The batch, the first dimension of all that is ``given``, stays open where it is 2 or more and the network allows it,
    so that one export serves every batch size that a build asks for.
    """
    import torch

    buffer = io.BytesIO()
    batch = torch.export.Dim.AUTO(min=1, max=MAX_BATCH)
    dynamic = tuple({0: batch} if each.shape[0] > 1 else None for each in given)
    with torch.no_grad():
        program = torch.export.export(network, given, dynamic_shapes=dynamic)
    # Into memory: with a path, torch would put its name into the file, and its digest would change with it.
    torch.export.save(program, buffer, extra_files=dict(extra or {}))
    return buffer.getvalue()
