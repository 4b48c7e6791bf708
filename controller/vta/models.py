"""Models for ``vta``: built through the cache like every other build, and run whole in this process.

What the accelerator computes is simulated, what the processor computes runs on this machine's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.vta import arguments
from targets.base import FleetError, Option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from controller.build import Built
    from controller.cli.session import Session
    from controller.vta.report import SimReport
    from controller.vta.simulate import Ran, Settings
    from controller.vta.watched import Region, WatchedRunner
    from targets.base import Array
    from targets.bundle import Manifest
    from targets.vta.program import Program

    Job = tuple[Program, list[npt.NDArray[np.int8]], str]

#: Answers of a classifier that are told.
TOP = 5


class Bundle:
    """A build as a runner takes it: a `targets.base.LoadedBundle` in the cache."""

    def __init__(self, built: Built) -> None:
        assert built.manifest is not None
        self.manifest: Manifest = built.manifest
        self._blobs = built.blobs
        self._digests = {file.path: file.sha256 for file in built.manifest.files}

    def path(self, name: str) -> Path:
        return self._blobs.path(self._digests[name])


def build(session: Session, model: str, target: str, config: str, weights: str, options: Mapping[str, Option]) -> Built:
    """Build ``model``, or take it from the cache. Raises the build's FleetError.

    A network that has no weights of its own gets random ones, said out loud: what the accelerator does, and how long it
    takes, does not depend on them.
    """
    chosen = {**options, **_config_option(config)}
    try:
        return _build(session, model, target, weights, chosen)
    except FleetError as error:
        if weights or error.code != "bad-weights":
            raise
    from controller.cli import terminal

    said = f"{model} has no weights of its own; these are random:0, so its answers mean nothing"
    terminal.console(sys.stderr).print(f"note: {said}", highlight=False)
    return _build(session, model, target, "random:0", chosen)


def _build(session: Session, model: str, target: str, weights: str, options: Mapping[str, Option]) -> Built:
    from controller.cli.view import view

    with view(f"vta build {model}") as listener:
        (built,) = session.fleet(listener).build(model, [target], weights=weights, options=options)
    if built.error is not None:
        raise built.error
    return built


def programs(built: Built) -> list[Program]:
    """The programs of a build, in the order in which they run. Raises FleetError ``no-program`` if there are none."""
    from targets.vta.files import read_programs

    bundle = Bundle(built)
    found = read_programs(bundle)
    if not found:
        raise FleetError(
            f"nothing of {bundle.manifest.model.name} runs on the accelerator",
            code="no-program",
            hint="; ".join(notes(built)) or "it has no convolution that VTA computes",
        )
    name = bundle.manifest.model.name
    return [
        replace(program, model=name if len(found) == 1 else f"{name}-{number}") for number, program in enumerate(found)
    ]


def notes(built: Built) -> list[str]:
    """What the compiler has to say, such as which operators stay on the processor, and why."""
    return list(quantisation(built).get("notes", ()))


def quantisation(built: Built) -> dict[str, Any]:
    """What quantising lost, as the build found it."""
    import msgspec

    from targets.vta.files import REPORT

    found: dict[str, Any] = msgspec.json.decode(Bundle(built).path(REPORT).read_bytes())
    return found


def simulate(built: Built, image: Path | None, settings: Settings) -> tuple[SimReport, list[Ran]]:
    """Run a whole model: on a picture, or on the inputs that came with the build, whose answers are then checked."""
    from controller.vta import report, simulate
    from targets.vta import boards

    bundle = Bundle(built)
    regions, outputs, source = _run(built, image, settings)
    board = boards.find(settings.board)
    ran = [
        simulate.measured(
            region.program.table,
            region.program.config,
            region.program.layers,
            region.statistics.counters,
            region.statistics.seconds,
            board,
        )
        for region in regions
    ]
    model = bundle.manifest.model
    found = simulate.summary(model.name, ran, settings, source=source)
    found.origin, found.bundle, found.notes = model.origin, built.id, notes(built)
    found.top = _top(bundle.manifest, outputs)
    if image is None:
        found.as_expected = _as_golden(bundle, outputs)
        found.difference = "" if found.as_expected else "the outputs are not those that the build computed"
    config = regions[0].program.config.name
    found.published = dict(report.PUBLISHED.get((model.name, config), {})) if _comparable(bundle.manifest) else {}
    return found, ran


def captured(built: Built, image: Path | None) -> list[Job]:
    """Each program with the packed inputs that the network gives it, and what the network looked at."""
    from controller.vta.simulate import Settings

    regions, _, source = _run(built, image, Settings())
    return [(region.program, region.inputs, source) for region in regions]


def _run(built: Built, image: Path | None, settings: Settings) -> tuple[list[Region], list[Array], str]:
    """Regions in the order of the programs, the model's outputs, and what it looked at."""
    bundle = Bundle(built)
    inputs, source = _inputs(bundle, image)
    with _opened(bundle, programs(built), settings) as runner:
        outputs = runner.infer(inputs)
        return runner.regions(), outputs, source


def _opened(bundle: Bundle, found: Sequence[Program], settings: Settings) -> WatchedRunner:
    # TVM's runtime library alone: the compiler would take longer to load than all the rest.
    from targets.cpu.pool import import_runtime

    import_runtime(0)
    from controller.vta.simulate import make_ready
    from controller.vta.watched import WatchedRunner
    from targets.vta import boards
    from targets.vta.sim_driver import SimDriver

    make_ready(found[0].config)
    driver = SimDriver(found[0].config, semantics=settings.semantics, order=settings.order, seed=settings.seed)
    try:
        return WatchedRunner(bundle, found, driver, boards.find(settings.board))
    except BaseException:
        driver.close()
        raise


def _inputs(bundle: Bundle, image: Path | None) -> tuple[list[Array], str]:
    import numpy as np

    manifest = bundle.manifest
    if image is None:
        return _tensors(bundle, manifest.golden.inputs[0]), "golden input 0 of the build"
    from targets.pictures.prepare import prepare
    from targets.pictures.read import load

    preprocess = manifest.model.preprocess
    if preprocess is None or len(manifest.inputs) != 1:
        raise FleetError(f"'{manifest.model.name}' does not take a picture", code="no-picture-model")
    one = prepare(load(image), preprocess)
    spec = manifest.inputs[0]
    array = np.repeat(one, spec.shape[0], axis=0).astype(spec.dtype)
    if array.shape != spec.shape:
        raise FleetError(
            f"a prepared picture has the shape {one.shape}, '{manifest.model.name}' takes {spec.shape}",
            code="bad-preprocess",
            hint="correct `preprocess` for it under `models:` in the inventory",
        )
    return [np.ascontiguousarray(array)], image.name


def _tensors(bundle: Bundle, names: Sequence[str]) -> list[Array]:
    import numpy as np

    specs = {file.path: file.tensor for file in bundle.manifest.files}
    found: list[Array] = []
    for name in names:
        spec = specs[name]
        assert spec is not None
        found.append(np.frombuffer(bundle.path(name).read_bytes(), np.dtype(spec.dtype)).reshape(spec.shape))
    return found


def _as_golden(bundle: Bundle, outputs: Sequence[Array]) -> bool:
    import numpy as np

    golden = bundle.manifest.golden
    wanted = _tensors(bundle, golden.outputs[0])
    return all(
        np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=golden.rtol, atol=golden.atol)
        for got, want in zip(outputs, wanted, strict=True)
    )


def _top(manifest: Manifest, outputs: Sequence[Array]) -> list[Any]:
    """The best classes of the first picture; nothing for what is no classifier."""
    from targets.pictures.answers import top_labels

    model = manifest.model
    if model.postprocess is None or model.postprocess.kind != "classify":
        return []
    return top_labels([array[:1] for array in outputs], model.postprocess, model.labels, TOP)


def _comparable(manifest: Manifest) -> bool:
    """Whether the accelerator has the layers that TVM gives it, of one picture."""
    more = manifest.options.get("first_conv") or manifest.options.get("dense") or manifest.options.get("pools")
    return not more and manifest.inputs[0].shape[0] == 1


def _config_option(text: str) -> dict[str, Option]:
    """``--config`` as the build option: a published name, or the file itself."""
    config = arguments.configuration(text)
    if config is None:
        return {}
    from targets.vta.config import PUBLISHED

    return {"config": config.identity if config.name in PUBLISHED else text}
