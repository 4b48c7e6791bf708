"""What can be asked of the controller's operations; see `controller.fleet.Fleet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol import BenchSpec
from targets.base import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    #: ``pretrained``, a file, or ``random:SEED``; empty takes the model's own default.
    weights: str = ""
    #: Build options, on top of the inventory's.
    options: Mapping[str, Option] = field(default_factory=dict)
    slot: str = "default"
    #: The first so many devices must be active before the others are touched; 0 starts all at once.
    canary: int = 0
    #: Never let more devices than this fail; the rest is left untouched. None sets no bound.
    max_failures: int | None = None
    #: Build and ask the devices what they lack, but change nothing on them.
    dry_run: bool = False
    #: Median latency in milliseconds above which a device keeps its old release; 0 sets no bound.
    latency_budget_ms: float = 0.0
    #: Threads on the device; 0 takes the inventory's, which may be 0 for all cores.
    threads: int = 0
    #: Build processes; 0 takes as many as there are cores.
    jobs: int = 0
    #: A Dask scheduler's address to build on; empty builds on this machine.
    scheduler: str = ""
    #: Seconds to wait for a device that someone else holds.
    lease_wait: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    spec: BenchSpec = field(default_factory=BenchSpec)
    #: Two models, `.fleet` files or bundle ids, measured in turn, block by block.
    ab: tuple[str, str] | None = None
    #: Batch sizes to build and measure one after the other; empty takes the build's own.
    batches: tuple[int, ...] = ()
    #: Engines to measure beside one another, as ``NAME`` or ``NAME:PRECISION``; ``all`` are those of the target.
    engines: tuple[str, ...] = ()
    slot: str = "default"
    #: Keep results on the devices too: do not acknowledge them.
    keep: bool = False
    weights: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    threads: int = 0
    jobs: int = 0
    scheduler: str = ""
    #: Seconds to wait for a device that someone else holds.
    lease_wait: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    #: About how many seconds of queries are timed.
    seconds: float = 2.0
    slot: str = "default"
    weights: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    threads: int = 0
    jobs: int = 0
    scheduler: str = ""
    #: Seconds to wait for a device that someone else holds.
    lease_wait: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    #: Races to run at most; 0 sets no bound.
    trials: int = 0
    #: Seconds to measure at most; 0 sets no bound.
    seconds: float = 600.0
    #: Forget what earlier tunings on this device measured.
    fresh: bool = False
    #: The file to keep what is found in; empty takes the controller's own, which its builds use.
    output: str = ""
    #: Say what there is to choose, and touch no device.
    dry_run: bool = False
    weights: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    #: Seconds to wait for a device that someone else holds.
    lease_wait: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    #: Measure on the first so many pictures; 0 takes all. Of a set of folders they are of all classes.
    limit: int = 0
    #: Forget what an earlier command that was cut off had done.
    fresh: bool = False
    #: A file with the data set's category of each of the model's classes; None goes by their names.
    classes: Path | None = None
    #: The folder with a COCO file's pictures; None looks in the usual places.
    images: Path | None = None
    #: Leave out pictures that are missing or cannot be read, instead of ending.
    skip_bad: bool = False
    #: The figure that counts; empty takes ``mAP``, ``mAP50`` or ``top1``, as the data set is.
    metric: str = ""
    #: A stored result to compare with, or the device or target whose newest result with this model it is.
    baseline: str = ""
    #: Where to draw what is taken for what; with several devices its name gets theirs. Empty for none.
    confusion: str = ""
    #: Lowest score of a detection that takes part; None takes 0.01, or the model's own if that is lower. A model that
    #: selects inside has a bound of its own.
    threshold: float | None = None
    #: Only pictures that have annotations: the others cannot be right, only wrong.
    annotated: bool = False
    slot: str = "default"
    threads: int = 0
    #: Seconds to wait for a device that someone else holds.
    lease_wait: float = 600.0
    #: Seconds to try to get a device back that was lost.
    patience: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    #: How many labels of a classifier, or boxes of a detector, at most; None takes five labels, and all boxes.
    top: int | None = None
    #: Lowest score of a box; None takes the model's own.
    threshold: float | None = None
    #: Where to write the picture with its boxes: a file, or a folder for several pictures or devices; empty for none.
    output: str = ""
    slot: str = "default"
    threads: int = 0
