"""Golden data: inputs, and what the framework that a model comes from computes for them on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from targets.base import BuiltFile, ModelError, Postprocess, Preprocess, SourceModel, TensorSpec

#: Raise it when inputs are made in another way: it is part of the build cache's key.
RECIPE = 1
SETS = 2
#: Modules whose code also shapes inputs.
SOURCES = ("controller.zoo.draw", "controller.zoo.shapes")

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Run = Callable[[Sequence[Array]], list[Array]]


class GoldenData(NamedTuple):
    """Files, and their names in bundle order: ``inputs[i]`` goes with ``outputs[i]``."""

    files: tuple[BuiltFile, ...]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]
    reference: str


def reference(model: SourceModel) -> str:
    """Which framework computes the outputs, with its version: torch, onnxruntime, or ONNX's own reference. Cheap."""
    if model.format == "pt2":
        return f"torch {_version('torch') or '(not installed)'}"
    runtime = _version("onnxruntime")
    return f"onnxruntime {runtime}" if runtime else f"onnx.reference {_version('onnx')}"


def make(
    model: SourceModel,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    folder: Path,
    own: tuple[Run, str] | None = None,
    preprocess: Preprocess | None = None,
) -> GoldenData:
    """Write golden inputs and outputs below ``folder``. ``inputs`` and ``outputs`` have all shapes fixed.

    ``own`` is a reference, and its name, in place of the source framework: of a build that computes something else.
    ``preprocess`` is how pictures become the first input of a build that does not take them as the model does.

    Raises:
        ModelError: the source framework cannot run the model, or does not give what was promised.
    """
    import numpy as np

    batch = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    run, words = own or ((_torch if model.format == "pt2" else _onnx)(model, batch), reference(model))
    if preprocess is not None and model.preprocess is not None:
        run = _as_taken(run, preprocess, model.preprocess)
    files: list[BuiltFile] = []
    names: dict[str, list[tuple[str, ...]]] = {"input": [], "output": []}

    def keep(kind: str, index: int, arrays: Sequence[Array], specs: Sequence[TensorSpec]) -> None:
        kept = []
        for position, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
            name = f"golden/{index}/{kind}-{position}"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.ascontiguousarray(array).tobytes())
            role = "golden-input" if kind == "input" else "golden-output"
            files.append(BuiltFile(name=name, path=str(path), role=role, tensor=spec))  # type: ignore[arg-type]
            kept.append(name)
        names[kind].append(tuple(kept))

    for index in range(SETS):
        given = [sample(spec, index, model.preprocess, model.postprocess) for spec in inputs]
        try:
            results = run(given)
        except ModelError:
            raise
        except Exception as error:
            # Frameworks raise what they like; all of it is about this model.
            raise ModelError(f"{words} cannot run {model.name}: {str(error)[:500]}") from error
        _check(results, outputs, model, words)
        keep("input", index, given, inputs)
        keep("output", index, results, outputs)
    return GoldenData(tuple(files), tuple(names["input"]), tuple(names["output"]), words)


def _as_taken(run: Run, given: Preprocess, wanted: Preprocess) -> Run:
    """``run`` on pictures that were prepared in another way than it takes them."""
    import numpy as np

    def last(array: Array, preprocess: Preprocess) -> Array:
        return array if preprocess.layout == "NHWC" else array.transpose(0, 2, 3, 1)

    def prepared(pictures: Array) -> Array:
        plain = last(pictures.astype(np.float64), given) * np.array(given.std) + np.array(given.mean)
        made = ((plain - np.array(wanted.mean)) / np.array(wanted.std)).astype(np.float32)
        return np.ascontiguousarray(made if wanted.layout == "NHWC" else made.transpose(0, 3, 1, 2))

    return lambda inputs: run([prepared(inputs[0]), *inputs[1:]])


def sample(
    spec: TensorSpec, index: int, preprocess: Preprocess | None, postprocess: Postprocess | None = None
) -> Array:
    """Input number ``index``, the same on every machine: pictures if the model takes pictures, else noise.

    A detector's pictures show something to find. What ``sizes`` says fits them. Integers are 0 or 1 (they may index a
    table of unknown length), bytes take their whole range.
    """
    import numpy as np

    noise = np.random.default_rng([RECIPE, index, *spec.name.encode()])
    dtype = numpy_dtype(spec.dtype)
    if spec.dtype == "uint8":
        return noise.integers(0, 256, spec.shape, dtype=np.uint8)
    if np.issubdtype(dtype, np.integer) or spec.dtype == "bool":
        return noise.integers(0, 2, spec.shape).astype(dtype)
    if preprocess is not None and spec.name == "sizes" and spec.shape[1:] == (2,):
        return np.array([_size(preprocess, index + row) for row in range(spec.shape[0])], dtype)
    if preprocess is None or len(spec.shape) != 4:
        values = noise.standard_normal(spec.shape) if index == 0 else noise.random(spec.shape)
        return values.astype(dtype)
    if postprocess is not None and postprocess.kind != "classify":
        from targets.pictures.prepare import shape

        if spec.shape[1:] == shape(preprocess):
            return _scenes(spec.shape, preprocess, index).astype(dtype)
    return _picture(noise, spec.shape, preprocess, smooth=index > 0).astype(dtype)


def _size(preprocess: Preprocess, number: int) -> tuple[int, int]:
    """Height and width of a picture in its input: some fill it, and others leave a part of it."""
    height, width = preprocess.size
    if preprocess.resize != "fit":
        return height, width
    return ((height, width), (max(1, height * 3 // 4), width), (height, max(1, width * 2 // 3)))[number % 3]


def _scenes(shape: tuple[int, ...], preprocess: Preprocess, index: int) -> Array:
    """Drawn scenes as a detector is given them: several shapes with edges, sizes as `_size` says."""
    import numpy as np

    from controller.zoo import draw

    channels_last = preprocess.layout == "NHWC"
    batch, *canvas, channels = shape if channels_last else (shape[0], *shape[2:], shape[1])
    pictures = np.zeros((batch, *canvas, channels))
    for row in range(batch):
        height, width = _size(preprocess, index + row)
        scene = draw.scene(RECIPE, index + row, size=max(height, width)).picture[:height, :width] / 255
        if channels == 1:
            scene = scene.mean(-1, keepdims=True)
        elif preprocess.colour == "BGR":
            scene = scene[..., ::-1]
        inside = (scene - np.array(preprocess.mean)) / np.array(preprocess.std)
        pictures[row, : canvas[0], : canvas[1]][:height, :width] = inside
    return pictures if channels_last else pictures.transpose(0, 3, 1, 2)


def _picture(noise: np.random.Generator, shape: tuple[int, ...], preprocess: Preprocess, smooth: bool) -> Array:
    """Pictures as the model is given them: noise, or soft blots of colour, then normalised."""
    import numpy as np

    channels_last = preprocess.layout == "NHWC"
    batch, height, width, channels = shape if channels_last else (shape[0], shape[2], shape[3], shape[1])
    if smooth:
        y, x = np.mgrid[0:height, 0:width] / max(height, width)
        pictures = np.zeros((batch, height, width, channels))
        for _ in range(6):
            centre = noise.random((2, batch, 1, 1, 1))
            colour = noise.random((batch, 1, 1, channels))
            distance = (y[None, :, :, None] - centre[0]) ** 2 + (x[None, :, :, None] - centre[1]) ** 2
            pictures += colour * np.exp(-distance * 12)
        pictures = np.clip(pictures, 0, 1)
    else:
        pictures = noise.random((batch, height, width, channels))
    if len(preprocess.mean) == channels:
        pictures = (pictures - np.array(preprocess.mean)) / np.array(preprocess.std)
    return pictures if channels_last else pictures.transpose(0, 3, 1, 2)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name; those that NumPy lacks come from ml_dtypes."""
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return extended


def _check(results: Sequence[Array], outputs: Sequence[TensorSpec], model: SourceModel, words: str) -> None:
    import numpy as np

    if len(results) != len(outputs):
        raise ModelError(f"{model.name} gives {len(results)} outputs, its file says {len(outputs)}")
    for result, spec in zip(results, outputs, strict=True):
        if tuple(result.shape) != spec.shape or result.dtype.name != spec.dtype:
            raise ModelError(
                f"{words} gives output '{spec.name}' as {result.dtype} {list(result.shape)}, "
                f"the compiled model as {spec.dtype} {list(spec.shape)}"
            )
        if np.issubdtype(result.dtype, np.floating) and not np.isfinite(result).all():
            raise ModelError(
                f"output '{spec.name}' of {model.name} is not finite for ordinary inputs: it proves nothing",
                hint="check the model's weights",
            )


#: Newest container version that every locked ONNX Runtime opens.
ONNXRUNTIME_IR = 10


def _torch(model: SourceModel, _batch: int) -> Run:
    import numpy as np

    from targets import pt2_model

    module = pt2_model.read(Path(model.path)).load().module()
    import torch
    from torch.utils import _pytree

    # One thread: sums are then made in the same order every time, and the same build gives the same bundle.
    torch.set_num_threads(1)

    def run(inputs: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        return [tensor.numpy() for tensor in _pytree.tree_leaves(result)]

    return run


def _onnx(model: SourceModel, batch: int) -> Run:
    import numpy as np

    from targets import onnx_model

    read = onnx_model.read(Path(model.path))
    taken = onnx_model.inputs_and_outputs(read)[0]
    if any(-1 in spec.shape or (spec.shape and spec.shape[0] != batch) for spec in taken):
        read = onnx_model.fix_shapes(read, batch, model.name)
    names = [spec.name for spec in taken]
    if _version("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # The IR version counts changes of the container; what a model means is its opset's. The newest onnx package
        # writes a container that the newest ONNX Runtime does not open yet.
        read.ir_version = min(read.ir_version, ONNXRUNTIME_IR)
        session = onnxruntime.InferenceSession(read.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(read)
    return lambda inputs: [np.asarray(value) for value in evaluator.run(None, dict(zip(names, inputs, strict=True)))]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
