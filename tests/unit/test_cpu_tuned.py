"""Signatures tell problems apart, files of tuned choices are strict, and builds take what fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.base import FleetError
from targets.cpu.database import FOLDER, Choice, Database, Entry, Tuned, keep, load, name_of, read
from targets.cpu.host import CPUHost
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.program import Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout
from targets.cpu.machine import ARMV7_MACHINE, X86_MACHINE
from targets.cpu.problem import CANDIDATES, Problem, choice_of, chosen, signature, spec_of
from targets.cpu.processors import Processor
from targets.tuning import Finding

V3 = X86_MACHINE.processor("x86-64-v3")

few = st.integers(0, 2)
some = st.integers(1, 3)
layouts = st.builds(Layout, st.sampled_from([1, 4, 8]), few, few, few, few)
images = st.builds(
    ImageType,
    st.tuples(some, st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    layouts,
    st.sampled_from(["float32", "int8"]),
    few,
)
pairs = st.tuples(some, some)
windows = st.builds(Window, pairs, pairs, pairs, st.tuples(few, few, few, few))
arguments = st.one_of(st.builds(Result, few), st.builds(Operand, few), st.sampled_from([0.0, 6.0, 0.5, 2.0]))
steps = st.builds(
    Step, st.sampled_from(["add", "maximum", "power", "exp"]), st.lists(arguments, min_size=1, max_size=2).map(tuple)
)
programs = st.builds(
    Program,
    st.lists(steps, max_size=3).map(tuple),
    st.lists(st.builds(OperandType, st.sampled_from(["channel", "image", "gate"]), images), max_size=2).map(tuple),
)
problems = st.builds(Problem, images, images, windows, some, programs, st.booleans())


def alike(a: Problem, b: Problem) -> bool:
    """Whether they differ in nothing but numbers of their programs that do not say what is computed."""

    def without_numbers(problem: Problem) -> Problem:
        worked = tuple(
            Step(step.op, tuple(arg if step.op == "power" or not isinstance(arg, float) else 0.0 for arg in step.args))
            for step in problem.program.steps
        )
        return replace(problem, program=replace(problem.program, steps=worked))

    return without_numbers(a) == without_numbers(b)


@settings(deadline=None, max_examples=500)
@given(problems, problems, some, some)
def test_two_problems_share_a_signature_if_and_only_if_they_are_alike(
    a: Problem, b: Problem, cores: int, others: int
) -> None:
    one, other = replace(V3, cores=cores), replace(V3, cores=others)
    same = alike(a, b) and cores == others
    assert (signature(a, one) == signature(b, other)) == same


@settings(deadline=None, max_examples=300)
@given(problems, st.data())
def test_any_one_change_of_a_problem_changes_its_signature(problem: Problem, data: st.DataObject) -> None:
    """Two problems drawn at random differ in much; here they differ in one thing."""
    fields = {"x": images, "y": images, "window": windows, "groups": some, "program": programs}
    name = data.draw(st.sampled_from(sorted(fields)))
    changed = replace(problem, **{name: data.draw(fields[name])})
    assert (signature(changed, V3) == signature(problem, V3)) == alike(changed, problem)
    assert signature(replace(problem, depthwise=not problem.depthwise), V3) != signature(problem, V3)


def test_a_signature_stays_what_it_is() -> None:
    """Files of tuned choices are found by it: this text may only change with the files' version."""
    operand = OperandType("channel", ImageType((1, 8, 1, 1), Layout(8)))
    program = Program((Step("add", (Result(0), Operand(0))), Step("maximum", (Result(1), 0.0))), (operand,))
    x, y = ImageType((1, 3, 8, 8), Layout(1, 1, 1, 1, 1)), ImageType((1, 8, 8, 8), Layout(8))
    problem = Problem(x, y, Window((3, 3), padding=(1, 1, 1, 1)), 1, program)
    assert signature(problem, replace(V3, cores=2, l2_bytes=1024)) == (
        "conv2d x=float32:0:1,3,8,8/1:1,1,1,1 y=float32:0:1,8,8,8/8:0,0,0,0 kernel=3,3 stride=1,1 dilation=1,1 "
        "padding=1,1,1,1 groups=1 program=add(%0,@0);maximum(%1,#) operands=channel:float32:0:1,8,1,1/8:0,0,0,0 "
        "cores=2 l2=1024"
    )


def convolution(
    channels: int = 32, size: int = 12, kernel: int = 3, stride: int = 1, depthwise: bool = False
) -> Problem:
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    x = ImageType((1, channels, size, size), Layout(8, pad, pad, pad, pad))
    y = ImageType((1, channels, out, out), Layout(8))
    window = Window((kernel, kernel), (stride, stride), padding=(pad, pad, pad, pad))
    return Problem(x, y, window, channels if depthwise else 1, Program(), depthwise)


PROBLEMS = [
    convolution(),
    convolution(128, 7),
    convolution(64, 28, kernel=1),
    convolution(64, 28, stride=2),
    convolution(depthwise=True),
]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("processor", [V3, ARMV7_MACHINE.processor("cortex-a9")], ids=lambda p: p.name)
def test_candidates_are_few_distinct_ordered_and_can_be_found_again(problem: Problem, processor: Processor) -> None:
    found = problem.candidates(processor)
    assert found[0] == problem.default(processor)
    assert 1 < len(found) <= CANDIDATES and len(set(found)) == len(found)
    assert found == problem.candidates(processor)
    for spec in found:
        again = msgspec.json.decode(msgspec.json.encode(choice_of(spec)), type=Choice)
        assert spec_of(again, problem, processor) == spec


def entry(problem: Problem, candidate: int = 1, **changes: object) -> Entry:
    made = Entry(
        signature=signature(problem, V3),
        choice=choice_of(problem.candidates(V3)[candidate]),
        default=choice_of(problem.default(V3)),
        ms=1.0,
        default_ms=2.0,
        device="board",
        date="2026-01-31",
        toolchain={"apache-tvm": "0.27.0"},
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_was_tuned_is_taken_and_nothing_else_is_touched(problem: Problem) -> None:
    tuned = Tuned([entry(problem)])
    assert chosen(problem, V3, tuned) == (problem.candidates(V3)[1], True)
    for other in PROBLEMS:
        if other != problem:
            assert chosen(other, V3, tuned) == (other.default(V3), False)
    # Another number of cores is another problem.
    assert chosen(problem, replace(V3, cores=V3.cores + 1), tuned)[1] is False
    assert tuned.warnings == []


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_beat_another_default_is_not_taken(problem: Problem) -> None:
    """A better compiler's default is not made worse by what was better than an older one's."""
    tuned = Tuned([entry(problem, default=choice_of(problem.candidates(V3)[2]))])
    assert chosen(problem, V3, tuned) == (problem.default(V3), False)
    (warning,) = tuned.warnings
    assert "beat another default" in warning and "fleet tune" in warning


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PROBLEMS), st.lists(st.integers(1, 40), min_size=7, max_size=7), st.sampled_from([2, 4]))
def test_a_tile_that_does_not_fit_never_breaks_a_build(problem: Problem, sizes: list[int], m: int) -> None:
    """Whatever an entry of another version says: it is a kernel that can be built, or the default with a warning."""
    tile = {
        "direct": dict(zip(("blocks", "rows", "columns", "depth", "strip"), sizes, strict=False)),
        "winograd": {
            **dict(zip(("blocks", "tiles", "strip", "part", "depth"), sizes, strict=False)),
            "m": m,
            "order": "groups",
        },
        "depthwise": dict(zip(("rows", "columns"), sizes, strict=False)),
    }
    for kernel, sizes_of in tile.items():
        data = msgspec.to_builtins(entry(problem)) | {"choice": {"kernel": kernel, **sizes_of}}
        tuned = Tuned([msgspec.convert(data, type=Entry)])
        spec, measured = chosen(problem, V3, tuned)
        if not measured:
            assert spec == problem.default(V3)
            (warning,) = tuned.warnings
            assert "2026-01-31" in warning and "apache-tvm 0.27.0" in warning and "fleet tune" in warning
        assert spec in {one for one, _ in problem.every(V3)}


# --- Files --------------------------------------------------------------------------------------

finite = st.floats(1e-6, 1e6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(PROBLEMS), st.integers(1, 5), finite, finite), max_size=6))
def test_what_is_kept_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[Problem, int, float, float]]
) -> None:
    path = tmp_path_factory.mktemp("tuned") / "folder" / "x.json"
    findings = [
        Finding(
            signature=signature(problem, V3),
            choice=msgspec.json.encode(choice_of(problem.candidates(V3)[number])).decode(),
            default_choice=msgspec.json.encode(choice_of(problem.default(V3))).decode(),
            ms=ms,
            default_ms=default_ms,
            device="board",
            date="2026-01-31",
        )
        for problem, number, ms, default_ms in found
    ]
    for one in findings:
        keep(path, "x86_64", V3, [one], {"apache-tvm": "1"})
    last = {one.signature: one for one in findings}
    loaded = load("x86_64", V3, str(path)).entries if findings else {}
    assert set(loaded) == set(last)
    for key, one in last.items():
        assert (loaded[key].ms, loaded[key].default_ms) == (one.ms, one.default_ms)
        assert msgspec.json.encode(loaded[key].choice).decode() == one.choice
    if findings:
        entries = read(path, "x86_64", V3).entries
        assert [one.signature for one in entries] == sorted(last)


def test_where_the_default_stays_an_entry_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PROBLEMS[0]
    key, winner = signature(problem, V3), msgspec.json.encode(choice_of(problem.candidates(V3)[1])).decode()
    default = msgspec.json.encode(choice_of(problem.default(V3))).decode()
    won = Finding(
        signature=key, choice=winner, default_choice=default, ms=1.0, default_ms=2.0, device="b", date="2026-01-31"
    )
    lost = msgspec.structs.replace(won, choice="", ms=2.0)
    path, packaged = tmp_path / "own.json", tmp_path / "packaged"
    keep(path, "x86_64", V3, [won], {})
    keep(path, "x86_64", V3, [lost], {})
    assert read(path, "x86_64", V3).entries == []
    # Unless the entry that comes with the package must be overruled: the user's own measurement wins.
    monkeypatch.setattr("targets.cpu.database.FOLDER", packaged)
    keep(packaged / name_of("x86_64", V3), "x86_64", V3, [won], {})
    keep(path, "x86_64", V3, [lost], {})
    assert chosen(problem, V3, load("x86_64", V3))[0] == problem.candidates(V3)[1]
    assert chosen(problem, V3, load("x86_64", V3, str(path)))[0] == problem.default(V3)
    assert load("x86_64", V3, "off").entries == {}
    # In the packaged file itself there is nothing to overrule.
    keep(packaged / name_of("x86_64", V3), "x86_64", V3, [lost], {})
    assert load("x86_64", V3).entries == {}


def damaged() -> dict[str, object]:
    good = msgspec.to_builtins(Database(machine="x86_64", processor="x86-64-v3", entries=[entry(PROBLEMS[0])]))
    first = good["entries"][0]

    def with_entry(**changes: object) -> dict[str, object]:
        return good | {"entries": [first | changes]}

    return {
        "no JSON": b"{",
        "not an object": [],
        "another version": good | {"version": 2},
        "a key of another version": good | {"extra": 1},
        "another machine": good | {"machine": "aarch64"},
        "another processor": good | {"processor": "znver4"},
        "an unknown kernel": with_entry(choice={"kernel": "gemm", "blocks": 1}),
        "a key too many in a choice": with_entry(choice=first["choice"] | {"unroll": 4}),
        "no tile": with_entry(choice={"kernel": "direct"}),
        "a tile of nothing": with_entry(choice={"kernel": "depthwise", "rows": 0, "columns": 1}),
        "a tile beyond reason": with_entry(choice={"kernel": "depthwise", "rows": 1, "columns": 10**9}),
        "text for a number": with_entry(ms="1"),
        "no time": with_entry(ms=0.0),
        "a time before": with_entry(default_ms=-1.0),
        "no date": with_entry(date="yesterday"),
        "no signature": with_entry(signature=""),
        "one problem twice": good | {"entries": [first, first]},
    }


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_file_is_refused(tmp_path: Path, what: str) -> None:
    content = damaged()[what]
    path = tmp_path / "tuned.json"
    path.write_bytes(content if isinstance(content, bytes) else msgspec.json.encode(content))
    with pytest.raises(FleetError) as raised:
        load("x86_64", V3, str(path))
    assert raised.value.code == "bad-tuning" and raised.value.hint
    # Nor is it overwritten as if it had been empty.
    with pytest.raises(FleetError):
        keep(path, "x86_64", V3, [], {})


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FleetError, match="larger than"):
        load("x86_64", V3, str(path))


def test_files_that_come_with_the_package_are_good() -> None:
    machines = {("x86_64", processor) for processor in X86_MACHINE.processors.values()}
    known = {name_of(machine, processor): (machine, processor) for machine, processor in machines}
    for path in FOLDER.glob("*.json"):
        machine, processor = known[path.name]
        database = read(path, machine, processor)
        assert all(one.ms < 0.97 * one.default_ms for one in database.entries)


def test_the_files_contents_are_part_of_a_builds_key(tmp_path: Path) -> None:
    host = CPUHost(X86_MACHINE)
    options = {"mcpu": "x86-64-v3", "cores": 2}
    assert host.with_tuned(options, tmp_path) == options
    path = tmp_path / host.tuning_file(options)
    v3 = replace(V3, cores=2)
    finding = Finding(
        signature=signature(PROBLEMS[0], v3),
        choice=msgspec.json.encode(choice_of(PROBLEMS[0].candidates(v3)[1])).decode(),
        default_choice=msgspec.json.encode(choice_of(PROBLEMS[0].default(v3))).decode(),
        ms=1.0,
        default_ms=2.0,
        device="b",
        date="2026-01-31",
    )
    host.keep(options, path, [finding])
    tuned = host.with_tuned(options, tmp_path)
    assert tuned == {**options, "tuned": str(path)}
    assert host.with_tuned({**options, "tuned": "off"}, tmp_path) == {**options, "tuned": "off"}
    plain = host.toolchain({**options, "tuned": "off"})["tuned"]
    first = host.toolchain(tuned)["tuned"]
    # When it was measured, and how fast it was, does not shape the library; what is taken does.
    host.keep(options, path, [msgspec.structs.replace(finding, ms=1.5, date="2026-02-01")])
    assert host.toolchain(tuned)["tuned"] == first != plain == ""
    other = msgspec.json.encode(choice_of(PROBLEMS[0].candidates(v3)[2])).decode()
    host.keep(options, path, [msgspec.structs.replace(finding, choice=other)])
    assert host.toolchain(tuned)["tuned"] not in (first, plain)
    with pytest.raises(FleetError, match="there is no file"):
        host.toolchain({**options, "tuned": str(tmp_path / "none.json")})


def test_kernels_are_compared_where_they_must_agree() -> None:
    from targets.cpu.tuner import alike, arguments

    problem = convolution(12, 6)
    y = problem.y
    one, other = arguments(problem, problem.candidates(V3)[:2])
    # One buffer on the device: the kernels differ in nothing but themselves and their weights' order.
    assert one[0] is other[0] and one[-1] is other[-1] and one[1] is not other[1]
    assert np.isnan(one[-1]).all() and one[-1].shape == y.physical
    random = np.random.default_rng(0)
    good = random.standard_normal(y.physical).astype("float32")
    beyond, wrong, rounded = good.copy(), good.copy(), good * np.float32(1 + 1e-6)
    beyond[:, 1, :, :, 4:] = 1e9
    wrong[0, 0, 3, 3, 2] += 0.5
    assert alike(y, good, beyond) and alike(y, good, rounded)
    assert not alike(y, good, wrong)
    assert not alike(y, good, np.full_like(good, np.nan))
