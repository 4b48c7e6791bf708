"""The contract between `fleet` and a kind of board.

A target is one entry point in the group ``fleet.targets``: an object that satisfies :class:`Target`. Its host half
compiles (and may import a compiler); its device half runs inside a worker process on the board (and may not). Both are
imported only when they are asked for, so naming a target costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

Option = str | int | float | bool
#: Options that name files of the host. A bundle says what was in them (`HostHalf.toolchain`), never where they lay.
LOCAL_OPTIONS = frozenset({"bitstream", "calibration", "config", "tuned"})
Role = Literal["library", "weight", "golden-input", "golden-output", "extra"]


class FleetError(Exception):
    """An error whose message is for the person at the terminal: what is wrong, and what to do next.

    ``code`` is a stable short name such as ``unknown-device``; ``hint`` says what to do next and may be empty.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class ModelError(FleetError):
    """A model that cannot be read or compiled: says which operator, and where."""

    code = "bad-model"


class BundleError(FleetError):
    """A bundle that cannot be trusted: digest, signature, path, size, or for another target."""

    code = "bad-bundle"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """Name, shape, NumPy dtype name and layout (such as ``NCHW``, may be empty) of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""


class Preprocess(msgspec.Struct, frozen=True):
    """How a picture becomes the model's first input.

    The picture is brought to ``colour``, resized by ``resize`` to ``size`` (height, width), scaled to 0..1,
    then ``(x - mean) / std`` per channel, then laid out as ``layout`` with a batch axis. A second input ``sizes``,
    float32 (N, 2), is the height and width that the picture has in the first.
    """

    size: tuple[int, int]
    colour: Literal["RGB", "BGR", "L"] = "RGB"
    #: ``stretch`` ignores the aspect ratio; ``crop`` resizes the short side to size/crop_ratio and crops the centre;
    #: ``fit`` makes it as large as fits into ``size`` and leaves zeros at the right and below.
    resize: Literal["stretch", "crop", "fit"] = "stretch"
    #: ``antialias``: a bilinear filter that grows when shrinking, on 8 bits (Pillow's, torchvision's for files);
    #: ``bilinear``: of the nearest four pixels, on floats (torch.nn.functional.interpolate, MXNet's and OpenCV's).
    filter: Literal["antialias", "bilinear"] = "antialias"
    #: Height and width of the input when it is larger than ``size``: zeros fill it up. (0, 0): ``size``.
    canvas: tuple[int, int] = (0, 0)
    crop_ratio: float = 0.875
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class Postprocess(msgspec.Struct, frozen=True):
    """How outputs become answers.

    ``classify``: logits (N, classes). ``ssd``: locations and class logits, which are decoded and freed of overlaps
    outside of the network. ``detections``: that happens inside; outputs are known by their names: ``boxes`` (N, M, 4)
    as corners, ``scores`` (N, M), ``labels`` (N, M) that count the model's labels from 0, ``count`` (N,) of the rows
    that are something, best first, and maybe ``masks``: (N, M, S, S) float32 within each box, or (N, M, H, W) uint8
    of the whole input, probability times 256.
    """

    kind: Literal["classify", "ssd", "detections"]
    #: Whether the scores are already probabilities.
    softmaxed: bool = False
    #: For ``ssd``: default boxes as a (boxes, 4) list of centre-x, centre-y, width, height in 0..1, and variances.
    anchors: tuple[tuple[float, float, float, float], ...] = ()
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    #: For ``ssd``: (N, 4, boxes) and (N, columns, boxes) instead of (N, boxes, 4) and (N, boxes, columns). Column 0 is
    #: the background.
    boxes_last: bool = False
    score_threshold: float = 0.05
    iou_threshold: float = 0.45
    max_boxes: int = 100
    #: So many of the best boxes of each class, and of all classes after that, are looked at for overlaps; 0: all.
    per_class: int = 0
    total: int = 0
    #: For ``ssd``: only so many boxes are looked at, those with the best score of any class, and only if that is above
    #: ``box_threshold``; 0: all. Each then stands for every class.
    best_boxes: int = 0
    box_threshold: float = 0.0
    #: Boxes may reach beyond the edges of the picture that they were found in.
    beyond: bool = False
    #: Logarithms of a box's sides relative to its default box's are at most this.
    max_log_size: float | None = None
    #: Boxes end at the edges of the input before they are compared.
    clip: bool = False
    #: Overlaps are rounded as torchvision does; see ``class_nms`` of :mod:`targets.detection.operators`.
    shifted: bool = False
    #: Boxes are found in 0..1 of the input's picture, or in its pixels.
    coordinates: Literal["relative", "pixels"] = "relative"


class SourceModel(msgspec.Struct, frozen=True):
    """A network to compile: one self-contained file and what is known about it."""

    name: str
    format: Literal["onnx", "pt2"]
    path: str
    sha256: str
    #: Where it came from, said out loud everywhere: ``zoo:resnet18 weights=random:0`` or ``file:net.onnx``.
    origin: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()


class Requirements(msgspec.Struct, frozen=True):
    """What a device must have before a bundle may be activated on it."""

    #: Lowest agent version, as ``major.minor``.
    agent: str = "0.1"
    #: Runtime distributions and their exact versions, such as ``{"apache-tvm": "0.27.0.post1"}``.
    runtime: dict[str, str] = {}
    #: ``machine`` as ``os.uname().machine`` says it, such as ``x86_64``.
    machine: str = ""
    #: CPU features by their names in /proc/cpuinfo, such as ``avx512f``.
    cpu_features: tuple[str, ...] = ()
    accelerator: str = ""
    bitstream: str = ""


class BuiltFile(msgspec.Struct, frozen=True):
    """One file that a build made. ``name`` is its path inside the bundle, ``path`` where it lies now."""

    name: str
    path: str
    role: Role
    tensor: TensorSpec | None = None


class BuildOutput(msgspec.Struct, frozen=True):
    """What a host half hands back; `controller.build` adds golden data and makes the bundle of it."""

    #: Name of the file the device half starts from.
    entry: str
    files: tuple[BuiltFile, ...]
    #: Names of the weight files in the order the entry point takes them.
    parameters: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requirements: Requirements
    engine: str
    #: Allowed difference from the reference: ``|a - b| <= atol + rtol * |b|``.
    rtol: float = 1e-3
    atol: float = 1e-3
    #: What a person should know of this build, although it succeeded.
    warnings: tuple[str, ...] = ()
    #: How pictures become its first input, where that is not as the model says: they may be bytes, which the board
    #: normalises itself.
    preprocess: Preprocess | None = None


@runtime_checkable
class HostHalf(Protocol):
    """Compiles for one kind of board. Runs in a build process of its own."""

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        """Versions of everything that shapes the result, and the resolved options that do (CPU, threads).

        Must be cheap (read distribution metadata, import nothing heavy): it is part of the build cache's key.
        """
        ...

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        """Compile ``model`` into files below ``workdir``. Raises :class:`ModelError` for what cannot be compiled.

        ``progress(stage, share)`` is called with a short stage name and the share done, 0..1.
        """
        ...


@runtime_checkable
class FetchingHalf(Protocol):
    """A host half that builds with files that were fetched into the controller's cache before."""

    def with_fetched(self, options: Mapping[str, Option], cache: Path) -> dict[str, Option]:
        """``options``, and those files of ``cache`` that fit and that nobody named."""
        ...


#: Inputs of a model to calibrate it on: for the specs of all its inputs, one list of arrays after the other.
Samples = Callable[[Sequence[TensorSpec]], "Iterable[Sequence[Array]]"]


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was built of a network in integers, and what it shall compute.

    ``reference`` takes inputs in the order of ``output.inputs`` and gives the outputs; ``words`` names it.
    """

    output: BuildOutput
    reference: Callable[[Sequence[Array]], list[Array]]
    words: str


@runtime_checkable
class QuantisingHalf(Protocol):
    """A host half that can make integers of a network, and needs samples of its inputs for it; or else a `HostHalf`.

    The option ``calibration`` is the caller's, who makes ``samples`` of it; the half never sees it.
    """

    def quantises(self, options: Mapping[str, Option]) -> bool:
        """Whether these options ask for integers. If not, it is built as a :class:`HostHalf` builds."""
        ...

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]: ...

    def build_quantised(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        samples: Samples,
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> Quantised: ...


class Runner(Protocol):
    """One loaded model on a device, inside its worker process."""

    #: Name of the measuring engine: ``time_evaluator``, ``ais_bench``, ``host_clock``.
    engine: str

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once. Inputs and outputs are in the manifest's order, shapes and dtypes."""
        ...

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        """Run ``queries`` times back to back on the inputs last given; latency of each in seconds, shape (queries,)."""
        ...

    def conditions(self) -> dict[str, str]:
        """What this runtime adds to the conditions of a run: versions, threads, clocks."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Blocked(Protocol):
    """A runner to which each call of `Runner.measure` costs a start, such as a process that loads the model again."""

    def block_queries(self, seconds_per_query: float) -> int:
        """Fewest queries it wants in one call of `measure` when one takes so many seconds; 1 asks for nothing.

        A measurement asks again after each call, and may bound what it is told by the time that would take.
        """
        ...


@runtime_checkable
class HostTimed(Protocol):
    """A runner that can also be timed on the host's clock, as a loop written by hand does it.

    Inputs are those last given; they lie where the model takes them from before the first call.
    """

    def run_together(self, queries: int) -> float:
        """Run so many times back to back and wait for the device once, at the end; seconds for all of them."""
        ...

    def measure_on_host(self, queries: int) -> npt.NDArray[np.float64]:
        """Seconds of each query from before the call until the device is done with it, shape (queries,).

        Each is waited for before the next begins.
        """
        ...


@runtime_checkable
class Awake(Protocol):
    """A runner whose network runs in another process of the board, which waits for the next block by itself."""

    #: Whether it shall do so with its processor busy, see `targets.awake`: nothing else is measured in between.
    awake: bool


@runtime_checkable
class Counting(Protocol):
    """A runner whose accelerator counts what it does."""

    def counters(self) -> dict[str, int | float]:
        """What one inference costs, by the accelerator's own names; of the last one."""
        ...


class OperatorTime(msgspec.Struct, kw_only=True, frozen=True):
    """One call of a kernel within a query, and what is known of it."""

    #: The function's name in the library.
    kernel: str
    #: What of the network it is.
    operators: tuple[str, ...]
    #: Shape of the result.
    output: tuple[int, ...]
    #: How the kernel does it: its algorithm and its tile; empty when nobody knows.
    choice: str
    #: Floating-point operations of its products; 0 for a kernel that has none, or of which nobody knows.
    flops: int
    #: Bytes of its arguments and its result.
    bytes: int
    #: Median over the queries.
    seconds: float


class OperatorProfile(msgspec.Struct, kw_only=True, frozen=True):
    """Where the time of a query goes. All times are medians over ``queries``, in seconds."""

    #: In the order of the calls.
    operators: tuple[OperatorTime, ...]
    #: What a query spends between its operators.
    between_seconds: float
    #: A query that nobody watches.
    query_seconds: float
    #: The most floating-point operations a second, and bytes a second of what no cache holds, measured just before
    #: and after on the same threads.
    peak_flops: float
    peak_bytes: float
    threads: int
    queries: int


@runtime_checkable
class Profiling(Protocol):
    """A runner that can tell what each operator of a query takes."""

    def profile(self, queries: int) -> OperatorProfile:
        """Run so many queries on the inputs last given.

        Raises :class:`FleetError` (``no-profile``) for a bundle that lacks what this needs.
        """
        ...


class LoadedBundle(Protocol):
    """What a runner is given: the manifest and where each of its files lies on the device."""

    @property
    def manifest(self) -> Any: ...  # targets.bundle.Manifest; Any because bundle.py imports this module

    def path(self, name: str) -> Path: ...


@runtime_checkable
class DeviceHalf(Protocol):
    """Runs bundles of one kind of board."""

    def unmet(self, requirements: Requirements) -> str:
        """Why this device cannot run such a bundle, in words; empty when it can. Must be cheap."""
        ...

    def load(self, bundle: LoadedBundle, threads: int) -> Runner:
        """Load library and weights. Called in the worker process only; ``threads`` 0 means all cores."""
        ...

    def telemetry(self) -> dict[str, float]:
        """Readings that only this kind of board has, such as ``power_w``; empty when there are none."""
        ...


@runtime_checkable
class TellingDevice(Protocol):
    """A device half that tells how far it is while it loads a bundle, because that may take minutes."""

    def load_telling(self, bundle: LoadedBundle, threads: int, progress: Callable[[str], None]) -> Runner:
        """Load like `DeviceHalf.load`. ``progress(stage)`` is called every few seconds as long as it goes on."""
        ...


@runtime_checkable
class ExclusiveDevice(Protocol):
    """A device half whose accelerator may belong to one process only."""

    @property
    def exclusive(self) -> bool:
        """Whether at most one model may be loaded at a time."""
        ...


@runtime_checkable
class CompilingDevice(Protocol):
    """A device half whose `load` compiles what its cache does not hold yet, which takes longer than loading does."""

    @property
    def load_deadline(self) -> float:
        """Seconds after which `load` has failed, compiling included."""
        ...


class Target(Protocol):
    """A kind of board, by entry point."""

    name: str
    description: str

    def host(self) -> HostHalf | QuantisingHalf: ...

    def device(self) -> DeviceHalf: ...


@runtime_checkable
class SimulatedTarget(Protocol):
    """A target whose accelerator can be simulated, so that its boards can be simulated on other machines."""

    #: Whether there is no real board of this kind.
    only_simulated: bool

    def simulated_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """``options`` of a build for the real board, as a board that is simulated on this machine needs them."""
        ...

    def simulated_device(self) -> DeviceHalf: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """One way in which a target can run a network: what it is called, and the build options that choose it.

    ``name`` and ``precision`` are what a person asks for: ``torch-tensorrt`` and ``fp16``.
    """

    name: str
    precision: str
    options: Mapping[str, Option]
    #: What speed-ups are against; at most one of a target.
    baseline: bool = False

    @property
    def words(self) -> str:
        return f"{self.name} {self.precision}".strip()


@runtime_checkable
class ComparedTarget(Protocol):
    """A target with several engines for one network, which can be measured beside one another."""

    #: In the order of a comparison's rows. One that a board lacks is among them: the board says why it is not there.
    engines: tuple[Engine, ...]


Link = Literal["rpc", "ssh", "rpc+ssh"]


@runtime_checkable
class LinkedTarget(Protocol):
    """A target whose boards are reached in another way than by their agent's own socket."""

    #: What the inventory's ``link`` is for such boards unless it says otherwise.
    link: Link


@runtime_checkable
class PreparedTarget(Protocol):
    """A simulated target that stands on tools of its board: they have to be there before a simulated board starts."""

    def prepare(self, folder: Path) -> dict[str, str]:
        """Install them below ``folder``, which may have them; the environment variables its agent is to have."""
        ...


@runtime_checkable
class HardwareTarget(Protocol):
    """A target whose accelerator nothing simulates."""

    def lacking(self) -> str:
        """Why no board of this kind can be on this machine, in words; empty when one can. Must be cheap."""
        ...


def names() -> list[str]:
    """Names of all installed targets, sorted."""
    from importlib.metadata import entry_points

    return sorted({e.name for e in entry_points(group="fleet.targets")})


def find(name: str) -> Target:
    """The installed target called ``name``. Raises :class:`FleetError` that lists what there is."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="fleet.targets"):
        if entry.name == name:
            target: Target = entry.load()()
            return target
    raise FleetError(
        f"there is no target '{name}'", code="unknown-target", hint=f"installed targets: {', '.join(names())}"
    )


def device_half(name: str, simulated: bool) -> DeviceHalf:
    """The device half of a board, or of a simulation of it. Raises :class:`FleetError` like `find`."""
    target = find(name)
    return target.simulated_device() if simulated and isinstance(target, SimulatedTarget) else target.device()


def is_simulator(name: str) -> bool:
    """Whether boards of this target are simulations, wherever they run."""
    target = find(name)
    return isinstance(target, SimulatedTarget) and target.only_simulated


def check_options(options: Mapping[str, Option], kinds: Mapping[str, type], target: str) -> None:
    """Raises :class:`FleetError` (``bad-option``) for an option that is not one of ``kinds``, or of another type."""
    for name, value in options.items():
        kind = kinds.get(name)
        if kind is None:
            raise FleetError(
                f"a build for {target} has no option '{name}'", code="bad-option", hint=f"it has: {', '.join(kinds)}"
            )
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FleetError(f"option '{name}' must be a {kind.__name__}, not {value!r}", code="bad-option")
