"""What the times of a query's operators mean: how close each is to the machine's best, and which to work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.protocol import ProtocolError
from controller.printable import printable
from controller.reports import Bound, OperatorReport, ProfileReport
from controller.tui.figures import milliseconds
from targets.base import OperatorProfile, OperatorTime

#: The finest that clocks tell apart, in seconds.
_CLOCK = 1e-9
#: No figure of a device is above this, whatever its unit.
_MOST = 1e18


def analyse(report: ProfileReport, profile: OperatorProfile) -> ProfileReport:
    """``report`` filled in from what its device measured. Raises ProtocolError for figures that cannot be."""
    _check(report.device, profile)
    report.threads, report.queries = profile.threads, profile.queries
    report.peak_gflops = profile.peak_flops / 1e9
    report.memory_gbytes_per_second = profile.peak_bytes / 1e9
    report.query_ms = profile.query_seconds * 1e3
    report.between_ms = profile.between_seconds * 1e3
    total = sum(one.seconds for one in profile.operators) + profile.between_seconds
    report.operators = [_operator(one, total, profile) for one in profile.operators]
    report.advice = advise(report)
    return report


def roof(intensity: float, report: ProfileReport) -> float:
    """The most GFLOP/s with so many operations a byte: what memory brings in time, up to the peak."""
    return min(report.peak_gflops, intensity * report.memory_gbytes_per_second)


def title(operator: OperatorReport) -> str:
    """What an operator is, for a person: ``conv2d + add + relu``."""
    return " + ".join(printable(name.removeprefix("nn.")) for name in operator.operators) or printable(operator.kernel)


def shape(operator: OperatorReport) -> str:
    return "×".join(map(str, operator.output))


def advise(report: ProfileReport) -> str:
    """What to work on: the kernel from which most time can be won, by all its calls, if it multiplied at the peak.

    That is asked of kernels that are bound by their multiply-adds only. When more time goes by elsewhere than they can
    win, it says where.
    """
    sentences = []
    win = 0.0
    if calls := max(_kernels(report.operators, "compute"), key=_win, default=None):
        win, first, spent = _win(calls), calls[0], sum(call.ms for call in calls)
        where = f", {len(calls)} calls" if len(calls) > 1 else ""
        gflops = sum(call.flops for call in calls) / spent / 1e6 if spent else 0.0
        sentences.append(
            f"Work on {printable(first.kernel)} ({title(first)}, {shape(first)}{where}): {milliseconds(spent)} ms at "
            f"{gflops:.0f} GFLOP/s, {gflops / report.peak_gflops:.0%} of the peak; at the peak the query would take "
            f"{milliseconds(win)} ms less."
        )
    others = [*_kernels(report.operators, "memory"), *_kernels(report.operators, "")]
    if others:
        spent = sum(call.ms for calls in others for call in calls)
        worst = max(others, key=lambda calls: sum(call.ms for call in calls))
        if spent > win:
            sentences.append(
                f"{milliseconds(spent)} ms go by in operators that multiply-adds do not bound, most of them in "
                f"{printable(worst[0].kernel)} ({title(worst[0])}, {shape(worst[0])}): "
                f"{milliseconds(sum(call.ms for call in worst))} ms."
            )
    return " ".join(sentences)


def _kernels(operators: Iterable[OperatorReport], bound: Bound) -> list[list[OperatorReport]]:
    """The calls of each kernel that is bound so."""
    found: dict[str, list[OperatorReport]] = {}
    for operator in operators:
        if operator.bound == bound:
            found.setdefault(operator.kernel, []).append(operator)
    return list(found.values())


def _win(calls: Sequence[OperatorReport]) -> float:
    """Milliseconds that these calls would take less at the peak."""
    return sum(call.ms * max(0.0, 1 - call.peak_share) for call in calls)


def _operator(one: OperatorTime, total: float, profile: OperatorProfile) -> OperatorReport:
    # A clock that did not move between two readings gives no rate.
    rate = 1 / one.seconds if one.seconds >= _CLOCK else 0.0
    bound: Bound = ""
    if one.flops:
        fed = one.flops / max(one.bytes, 1) * profile.peak_bytes >= profile.peak_flops
        bound = "compute" if fed else "memory"
    return OperatorReport(
        kernel=one.kernel,
        operators=list(one.operators),
        output=list(one.output),
        choice=one.choice,
        ms=one.seconds * 1e3,
        share=one.seconds / total if total else 0.0,
        gflops=one.flops * rate / 1e9,
        peak_share=one.flops * rate / profile.peak_flops,
        gbytes_per_second=one.bytes * rate / 1e9,
        bound=bound,
        flops=one.flops,
        bytes=one.bytes,
    )


def _check(device: str, profile: OperatorProfile) -> None:
    times = [profile.query_seconds, profile.between_seconds, *(one.seconds for one in profile.operators)]
    counts = [count for one in profile.operators for count in (one.flops, one.bytes)]
    peaks = (profile.peak_flops, profile.peak_bytes)
    if not (
        all(1 <= figure <= _MOST for figure in peaks)
        and all(0 <= figure <= _MOST for figure in times)
        and all(0 <= count <= _MOST for count in counts)
    ):
        raise ProtocolError(f"{device} sent a profile with figures that cannot be")
