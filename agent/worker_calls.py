"""What a worker process does for each of the agent's calls."""

from __future__ import annotations

import socket
import time
import traceback
from pathlib import Path

import numpy as np

from agent import calls as c
from agent.config import VERSION
from agent.faults import Faults, FaultyRunner, before_golden
from agent.golden import compare
from agent.store import StoredBundle, load_bundle
from agent.tensors import from_bytes, spec_of, to_bytes
from targets import base
from targets.awake import wait_awake
from targets.base import Awake, Blocked, Counting, FleetError, HostTimed, Profiling, Runner, TellingDevice, TensorSpec
from targets.cores import usable


class Worker:
    def __init__(self) -> None:
        self._bundle: StoredBundle | None = None
        self._runner: Runner | None = None
        self._faults = Faults()
        self._measurable = False
        self._connection: socket.socket | None = None

    def serve(self, connection: socket.socket) -> None:
        """Answer calls until the agent closes its end."""
        self._connection = connection
        with connection.makefile("rb") as stream:
            while len(head := stream.read(c.LENGTH.size)) == c.LENGTH.size:
                call = c.calls.decode(stream.read(c.LENGTH.unpack(head)[0]))
                connection.sendall(c.frame(self._answer(call)))
                if isinstance(call, c.Measure) and call.awake and not isinstance(self._runner, Awake | Blocked):
                    wait_awake(connection.fileno())

    def _answer(self, call: c.AnyCall) -> c.Answer:
        try:
            if isinstance(call, c.Load):
                return self._load(call)
            if isinstance(call, c.CheckGolden):
                return self._check_golden(call.index)
            if isinstance(call, c.RunOnce):
                return self._run_once(call.inputs)
            if isinstance(call, c.Measure):
                return self._measure(call)
            if isinstance(call, c.Profile):
                return self._profile(call.queries)
            return self._conditions()
        except FleetError as error:
            return c.Failed(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:
            traceback.print_exc()
            return c.Failed(code="worker-error", message=f"{type(error).__name__}: {error}")

    def _load(self, call: c.Load) -> c.Loaded:
        bundle = load_bundle(Path(call.bundle))
        device = base.device_half(call.target, call.simulated)
        requirements = bundle.manifest.requirements
        if unmet := (unmet_version(requirements.agent) or device.unmet(requirements) or usable().lacking(call.threads)):
            return c.Loaded(engine=bundle.manifest.engine, unmet=unmet)
        self._bundle = bundle
        self._faults = Faults.parse(call.faults)
        if isinstance(device, TellingDevice):
            self._runner = device.load_telling(bundle, call.threads, self._tell)
        else:
            self._runner = device.load(bundle, call.threads)
        if self._faults.kinds:
            self._runner = FaultyRunner(self._runner, self._faults)
        return c.Loaded(engine=self._runner.engine)

    def _tell(self, stage: str) -> None:
        assert self._connection is not None
        self._connection.sendall(c.frame(c.Loading(stage=stage[:200])))

    @property
    def _loaded(self) -> tuple[StoredBundle, Runner]:
        if self._bundle is None or self._runner is None:
            raise FleetError("no model is loaded", code="worker-error")
        return self._bundle, self._runner

    def _read(self, names: tuple[str, ...], specs: tuple[TensorSpec, ...]) -> list[base.Array]:
        bundle, _ = self._loaded
        return [from_bytes(spec, bundle.path(name).read_bytes()) for name, spec in zip(names, specs, strict=True)]

    def _check_golden(self, index: int) -> c.GoldenChecked:
        bundle, runner = self._loaded
        manifest = bundle.manifest
        inputs = self._read(manifest.golden.inputs[index], manifest.inputs)
        references = self._read(manifest.golden.outputs[index], manifest.outputs)
        before_golden(self._faults)
        self._measurable = False
        error, mismatch = compare(
            runner.infer(inputs),
            references,
            manifest.outputs,
            rtol=manifest.golden.rtol,
            atol=manifest.golden.atol,
            postprocess=manifest.model.postprocess,
        )
        return c.GoldenChecked(error=error, mismatch=mismatch)

    def _run_once(self, inputs: list[bytes]) -> c.RanOnce:
        bundle, runner = self._loaded
        manifest = bundle.manifest
        arrays = [from_bytes(spec, data) for spec, data in zip(manifest.inputs, inputs, strict=True)]
        self._measurable = False
        begin = time.perf_counter()
        outputs = runner.infer(arrays)
        seconds = time.perf_counter() - begin
        named = zip(manifest.outputs, outputs, strict=True)
        return c.RanOnce(
            outputs=[to_bytes(output) for output in outputs],
            specs=[spec_of(spec.name, output, spec.layout) for spec, output in named],
            seconds=seconds,
        )

    def _measure(self, call: c.Measure) -> c.Measured:
        runner = self._ready()
        if isinstance(runner, Awake):
            runner.awake = call.awake
        timed = runner if call.clock == "host" and isinstance(runner, HostTimed) else None
        if timed is None:
            seconds = runner.measure(call.queries)
        elif call.together:
            seconds = np.full(call.queries, timed.run_together(call.queries) / call.queries)
        else:
            seconds = timed.measure_on_host(call.queries)
        return c.Measured(
            seconds=to_bytes(seconds.astype("float64")),
            clock="host" if timed else "engine",
            least=runner.block_queries(float(np.median(seconds))) if isinstance(runner, Blocked) else 1,
        )

    def _profile(self, queries: int) -> c.Profiled:
        bundle, _ = self._loaded
        runner = self._ready()
        if isinstance(runner, FaultyRunner):
            # Its faults are about whole queries.
            runner = runner.runner
        if not isinstance(runner, Profiling):
            raise FleetError(
                f"target '{bundle.manifest.target}' has no profile: it does not time its operators",
                code="no-profile",
                hint="`fleet bench` measures it as a whole",
            )
        return c.Profiled(profile=runner.profile(queries))

    def _ready(self) -> Runner:
        """The runner, with the input that all queries are measured on: latency may depend on the data."""
        bundle, runner = self._loaded
        if not self._measurable:
            runner.infer(self._read(bundle.manifest.golden.inputs[0], bundle.manifest.inputs))
            self._measurable = True
        return runner

    def _conditions(self) -> c.Conditions:
        _, runner = self._loaded
        counters = runner.counters() if isinstance(runner, Counting) else {}
        return c.Conditions(values=runner.conditions(), counters=counters)


def unmet_version(wanted: str) -> str:
    """Why this agent is too old for a bundle, in words; empty when it is not."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")[:2]]

    try:
        new_enough = numbers(VERSION) >= numbers(wanted)
    except ValueError:
        return f"the bundle asks for agent '{wanted}', which is no version"
    return "" if new_enough else f"the bundle needs agent {wanted}, this is {VERSION}"
