"""What the controller's operations return: the same structs are the command line's JSON documents.

Keys are only ever added. Times are in seconds, latencies in milliseconds, sizes in bytes unless a name says otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.protocol import BenchProtocol, DeployStatus, LatencyStats, ReleaseInfo, Verdict
from targets.pictures.found import Box, TopLabel
from targets.published import Published


class DeviceReport(msgspec.Struct, kw_only=True):
    """One line of ``fleet devices``. ``state``: the agent's own, or ``unreachable``/``wrong-key``/``offline``."""

    name: str
    target: str
    state: str
    #: Bundle id of the active release of the default slot; empty when there is none.
    release: str
    #: Who holds the device; empty when nobody does.
    lease: str
    agent_version: str
    labels: dict[str, str]
    simulated: bool
    model: str = ""
    address: str = ""
    reason: str = ""


class StatusReport(msgspec.Struct, kw_only=True):
    """Everything one device tells about itself; ``state`` and ``reason`` as in `DeviceReport`."""

    name: str
    target: str
    state: str
    agent_version: str
    labels: dict[str, str]
    simulated: bool
    reason: str = ""
    #: How the device was reached: ``socket``, ``rpc`` or ``tracker``.
    carrier: str = ""
    releases: list[ReleaseInfo] = []
    lease: str = ""
    lease_expires_in: float = 0.0
    uptime: float = 0.0
    telemetry: dict[str, float] = {}
    unacknowledged: int = 0
    store_bytes: int = 0
    free_bytes: int = 0


class DeployReport(msgspec.Struct, kw_only=True):
    device: str
    target: str
    model: str
    status: DeployStatus
    bundle: str
    bytes_sent: int
    bytes_skipped: int
    seconds: float
    reason: str
    simulated: bool
    #: Blob bytes as they travelled, after compression.
    bytes_on_wire: int = 0
    #: What a dry run would have sent.
    bytes_to_send: int = 0
    active: str = ""
    origin: str = ""
    #: How the bytes went: ``socket``, ``rpc`` or ``tracker``.
    carrier: str = ""
    #: What the build had to say, as in `BuildReport`.
    warnings: list[str] = []


class RunReport(msgspec.Struct, kw_only=True):
    """One bench run as ``fleet bench --json`` and ``fleet results --json`` print it; the samples stay in the database.

    A device that could not be measured has ``id`` empty, verdict ``INVALID`` and the reason.
    """

    id: str
    device: str
    target: str
    model: str
    bundle: str
    engine: str
    batch: int
    verdict: Verdict
    reason: str
    latency_ms: LatencyStats | None
    throughput: float
    samples: int
    counters: dict[str, int | float]
    simulated: bool
    started_at: float = 0.0
    conditions: dict[str, float | str] = {}
    failed: bool = False
    #: How it was measured; figures of different protocols are not to be compared.
    protocol: BenchProtocol = "fleet"


class EngineReport(msgspec.Struct, kw_only=True):
    """One engine of a comparison. One that is not there, or could not be measured, has ``run`` empty and a reason."""

    #: What was asked for.
    engine: str
    precision: str
    run: str = ""
    #: What ran, as the runtime says it: the engine, and the types of weights and inputs; empty when it says nothing.
    ran: str = ""
    weight_dtype: str = ""
    input_dtype: str = ""
    mean_ms: float | None = None
    p50_ms: float | None = None
    throughput: float | None = None
    #: Times as fast as the baseline: by medians, or by means in the notebooks' protocol. None when there is no
    #: baseline, or outputs are wrong.
    speed_up: float | None = None
    #: 95 % confidence interval of it; None where the protocol gives none.
    speed_up_ci: tuple[float, float] | None = None
    #: Measured in turn with the baseline, block by block.
    interleaved: bool = False
    #: Largest absolute difference of the golden outputs from the reference's, which are of fp32.
    output_error: float | None = None
    baseline: bool = False
    verdict: Verdict = "INVALID"
    reason: str = ""
    #: What was published for it, on another machine.
    published_ms: float | None = None
    published_speed_up: float | None = None


class EngineComparison(msgspec.Struct, kw_only=True):
    """Engines of a target beside one another, with one network and batch on one device."""

    device: str
    target: str
    simulated: bool
    model: str
    batch: int
    protocol: BenchProtocol
    engines: list[EngineReport]
    published: Published | None = None


class SweepRow(msgspec.Struct, kw_only=True):
    batch: int
    run: str
    #: Items a second, and milliseconds of one query of the whole batch.
    throughput: float
    p50_ms: float
    verdict: Verdict


class Sweep(msgspec.Struct, kw_only=True):
    """Throughput of one network on one device by batch size."""

    device: str
    target: str
    simulated: bool
    model: str
    engine: str
    rows: list[SweepRow]
    published: Published | None = None


Bound = Literal["compute", "memory", ""]


class OperatorReport(msgspec.Struct, kw_only=True):
    """One kernel call of a query; shares are of 1. ``peak_share`` and ``gflops`` are 0 where nothing is multiplied."""

    #: The function's name in the library.
    kernel: str
    operators: list[str]
    #: Shape of the result.
    output: list[int]
    #: Algorithm and tile; empty for kernels that are not this project's.
    choice: str
    ms: float
    #: Of the query's time.
    share: float
    gflops: float
    peak_share: float
    gbytes_per_second: float
    #: What bounds it by the machine's measured peak and memory; empty when nothing is multiplied.
    bound: Bound
    flops: int
    bytes: int


class ProfileReport(msgspec.Struct, kw_only=True):
    """Where the time of one query goes on one device. One that could not be profiled has ``error`` and no operators."""

    device: str
    target: str
    simulated: bool
    model: str = ""
    bundle: str = ""
    threads: int = 0
    #: Measured with the library's own instructions and threads.
    peak_gflops: float = 0.0
    memory_gbytes_per_second: float = 0.0
    #: Median of whole queries that nobody watched.
    query_ms: float = 0.0
    #: Outside of operators.
    between_ms: float = 0.0
    queries: int = 0
    #: Share of the device's CPU that others took meanwhile.
    other_load: float = 0.0
    #: In the order of the calls.
    operators: list[OperatorReport] = []
    #: What to work on.
    advice: str = ""
    error: str = ""


class TunedLayer(msgspec.Struct, kw_only=True):
    """Layers of a network that are the same work, and what was found for them. Times are of one of them."""

    layer: str
    #: By which a build finds what was found.
    signature: str
    count: int
    #: Of the network's time in such layers, as estimated.
    share: float
    #: ``tuned``: ``best`` beats the default; ``default``: nothing does; else not all candidates are measured yet.
    state: Literal["tuned", "default", "unfinished", "untried"]
    default: str
    best: str
    #: Medians of one interleaved run, in milliseconds; None where there is none.
    default_ms: float | None
    ms: float | None
    #: Candidates measured, of `candidates` without the first, which is the default.
    measured: int
    candidates: list[str]
    #: Candidates that cannot be used, and why.
    failures: list[str] = []


class TuneReport(msgspec.Struct, kw_only=True):
    """What tuning a network on a device gave; layers in the order of their share."""

    device: str
    target: str
    simulated: bool
    model: str
    #: Where what was found is kept.
    file: str
    #: Races run now, and seconds spent on them.
    trials: int
    seconds: float
    layers: list[TunedLayer]


class Answer(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One picture's answer from one device: ``top`` or ``boxes``, whichever the model gives."""

    device: str
    image: str
    simulated: bool
    model: str = ""
    bundle: str = ""
    seconds: float = 0.0
    top: list[TopLabel] | None = None
    boxes: list[Box] | None = None
    #: Boxes that scored too little, or are too many, for what was asked for.
    left_out: int = 0
    error: str = ""
    #: Picture with the boxes drawn, if one was asked for.
    output: str = ""


class ClassReport(msgspec.Struct, kw_only=True):
    """Accuracy on one category of a data set; figures are 0..1, None where there is nothing to measure on."""

    name: str
    #: Objects, or pictures, of it that were to be found.
    truth: int
    metrics: dict[str, float | None]
    #: What the baseline had.
    baseline: dict[str, float | None] = {}


class EvalReport(msgspec.Struct, kw_only=True):
    """A model's accuracy on one device. One that could not be measured has ``id`` empty, and says why in ``error``."""

    id: str = ""
    device: str
    target: str
    simulated: bool
    model: str
    bundle: str = ""
    dataset: str
    #: Of what was to be found in which pictures: figures of the same one can be compared.
    dataset_digest: str = ""
    #: The figure that counts, one of ``metrics``.
    metric: str
    value: float | None = None
    baseline: float | None = None
    #: Pictures measured on, and those that could not be read.
    images: int = 0
    skipped: int = 0
    #: Pictures of them that an earlier, interrupted command had done.
    resumed: int = 0
    metrics: dict[str, float | None] = {}
    #: The result compared with, and its figures.
    baseline_id: str = ""
    baseline_metrics: dict[str, float | None] = {}
    classes: list[ClassReport] = []
    started_at: float = 0.0
    #: Spent on the pictures that were not done before.
    seconds: float = 0.0
    images_per_second: float = 0.0
    #: The picture of what is taken for what, if one was asked for.
    confusion: str = ""
    notes: list[str] = []
    origin: str = ""
    commit: str = ""
    error: str = ""


class BuildReport(msgspec.Struct, kw_only=True):
    model: str
    target: str
    bundle: str
    origin: str
    cached: bool
    seconds: float
    size: int
    output: str = ""
    error: str = ""
    #: What is worth knowing although it was built, such as an operator that will be slow.
    warnings: list[str] = []
