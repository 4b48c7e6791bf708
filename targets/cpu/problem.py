"""A convolution before a kernel is chosen for it: what there is to choose, and what was measured to be the best."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import msgspec

from targets.cpu import choose
from targets.cpu.database import Choice, DepthwiseTile, Direct, Tuned, Winograd
from targets.cpu.kernels import depthwise
from targets.cpu.kernels.depthwise import Depthwise
from targets.cpu.kernels.direct import DirectConv, Window
from targets.cpu.kernels.program import Operand, Program, Result, Step
from targets.cpu.kernels.winograd import WinogradConv
from targets.cpu.layout import ImageType
from targets.cpu.processors import Processor

Spec = DirectConv | WinogradConv | Depthwise

#: How many specifications are worth measuring, and by how much the estimate may be worse than the default's.
CANDIDATES = 24
WORTH = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """A convolution of ``x`` that gives ``y``. Groups are whole blocks of both pictures, or one channel each."""

    x: ImageType
    y: ImageType
    window: Window
    groups: int
    program: Program
    depthwise: bool = False

    def default(self, processor: Processor) -> Spec:
        """What is taken when nothing was measured."""
        if self.depthwise:
            return depthwise.plan(self.x, self.y, self.window, self.program, processor)
        return choose.convolution(self.x, self.y, self.window, self.groups, self.program, processor)[0].spec

    def every(self, processor: Processor) -> Iterator[tuple[Spec, float]]:
        """All that could be taken, with estimates that can be compared across layers; some come twice."""
        if self.depthwise:
            for spec in depthwise.plans(self.x, self.y, self.window, self.program, processor):
                yield spec, self.estimate(spec, processor)
            return
        for found in choose.every(self.x, self.y, self.window, self.groups, self.program, processor):
            yield found.spec, found.cost

    def estimate(self, spec: Spec, processor: Processor) -> float:
        """Multiply-adds that would take as long as ``spec``."""
        if isinstance(spec, Depthwise):
            pictures = self.y.shape[0] * self.y.blocks
            return depthwise.cycles(spec, processor) * pictures * processor.fma_per_cycle * processor.lanes
        return next(cost for found, cost in self.every(processor) if found == spec)

    def candidates(self, processor: Processor, most: int = CANDIDATES) -> list[Spec]:
        """What is worth measuring, at most ``most``: the default, then each kind's most promising in turn.

        Estimates are least sure of themselves across kinds, so none of them is left out for another's sake.
        """
        default = self.default(processor)
        costs = dict(self.every(processor))
        bound = WORTH * costs[default]
        ranked = sorted((cost, repr(spec), spec) for spec, cost in costs.items() if spec != default and cost <= bound)
        kinds: dict[Hashable, list[Spec]] = {}
        for _, _, spec in ranked:
            kinds.setdefault(_kind(spec), []).append(spec)
        chosen = [default]
        while kinds and len(chosen) < most:
            for kind in list(kinds):
                chosen.append(kinds[kind].pop(0))
                if not kinds[kind]:
                    del kinds[kind]
        return chosen[:most]


def chosen(problem: Problem, processor: Processor, tuned: Tuned) -> tuple[Spec, bool]:
    """What was measured to be the fastest, or else the default; and whether it was measured.

    What is in ``tuned`` and does not fit is told there.
    """
    tuned.asked.append(problem)
    default = problem.default(processor)
    entry = tuned.entries.get(signature(problem, processor))
    if entry is None:
        return default, False
    spec = spec_of(entry.choice, problem, processor)
    if spec is not None and entry.default == choice_of(default):
        return spec, True
    why = "does not fit this compiler" if spec is None else "beat another default than this compiler's"
    tools = ", ".join(f"{name} {version}" for name, version in sorted(entry.toolchain.items()))
    tuned.warnings.append(
        f"a tuned choice of {entry.date} ({tools}) {why}, and the default is taken; `fleet tune` measures anew: "
        f"{msgspec.json.encode(entry.choice).decode()} for {entry.signature}"
    )
    return default, False


def choice_of(spec: Spec) -> Choice:
    """The parameters of a specification."""
    if isinstance(spec, Depthwise):
        return DepthwiseTile(spec.rows, spec.columns)
    if isinstance(spec, DirectConv):
        tile = spec.tile
        return Direct(tile.blocks, tile.rows, tile.columns, tile.depth, tile.strip)
    cut = spec.tile
    return Winograd(2 if spec.m == 2 else 4, cut.order, cut.blocks, cut.tiles, cut.strip, cut.part, cut.depth)


def spec_of(choice: Choice, problem: Problem, processor: Processor) -> Spec | None:
    """The specification with these parameters, if it is one that the compiler could choose itself."""
    return next((spec for spec, _ in problem.every(processor) if choice_of(spec) == choice), None)


def signature(problem: Problem, processor: Processor) -> str:
    """All that the time of a kernel depends on, as text: two problems share it if, and only if, they are alike.

    Numbers of the program are left out: a network that was trained anew is the same work.
    """
    window = problem.window
    return " ".join(
        (
            "depthwise_conv2d" if problem.depthwise else "conv2d",
            f"x={_image(problem.x)}",
            f"y={_image(problem.y)}",
            f"kernel={_numbers(window.kernel)}",
            f"stride={_numbers(window.stride)}",
            f"dilation={_numbers(window.dilation)}",
            f"padding={_numbers(window.padding)}",
            f"groups={problem.groups}",
            f"program={';'.join(map(_step, problem.program.steps))}",
            f"operands={';'.join(f'{one.kind}:{_image(one.type)}' for one in problem.program.operands)}",
            f"cores={processor.cores}",
            f"l2={processor.l2_bytes}",
        )
    )


def _kind(spec: Spec) -> Hashable:
    """Specifications that differ in sizes alone are of one kind."""
    if isinstance(spec, WinogradConv):
        return "winograd", spec.m, spec.tile.order, spec.tile.blocks
    if isinstance(spec, DirectConv):
        return "direct", spec.tile.depth > 0, spec.tile.blocks
    return "depthwise", spec.rows


def _image(image: ImageType) -> str:
    layout = image.layout
    return f"{image.dtype}:{image.zero_point}:{_numbers(image.shape)}/{layout.block}:{_numbers(layout.border)}"


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _step(step: Step) -> str:
    def word(arg: Result | Operand | float) -> str:
        if isinstance(arg, Result):
            return f"%{arg.index}"
        if isinstance(arg, Operand):
            return f"@{arg.index}"
        # A power's exponent says what is computed: a square, or a root.
        return repr(float(arg)) if step.op == "power" else "#"

    return f"{step.op}({','.join(map(word, step.args))})"
