"""The loop that a kernel spends its time in is found in its assembly, and held against the FMA unit's peak."""

from __future__ import annotations

import pytest

from benchmarks import mca
from benchmarks.mca import CORTEX_A9, CORTEX_A72, NoAnalyser, hot_loop, innermost_loops, utilisation

#: Two loops in one another, a loop of another kind behind them, and what a compiler writes around instructions.
KERNEL_A72 = """
	.text
	.globl	kernel
kernel:                                 // @kernel
	.cfi_startproc
	cbz	x3, .LBB0_6
.LBB0_1:                                // =>This Loop Header: Depth=1
	movi	v0.2d, #0000000000000000
.LBB0_2:                                //   Parent Loop BB0_1 Depth=1
	ldr	q16, [x1], #16
	ldr	q17, [x2], #16
	fmla	v0.4s, v16.4s, v17.s[0]
	fmla	v1.4s, v16.4s, v17.s[1]
	fmla	v2.4s, v16.4s, v17.s[2]         // a comment
	fmla	v3.4s, v16.4s, v17.s[3]
	subs	x0, x0, #1
	b.ne	.LBB0_2
	bl	memcpy
	subs	x3, x3, #1
	b.ne	.LBB0_1
.LBB0_5:
	fadd	s0, s0, s1
	fmla	v4.4s, v5.4s, v6.4s
	cbnz	x4, .LBB0_5
.LBB0_6:
	ret
"""
KERNEL_A9 = """
.LBB0_1:
	vld1.32	{d16, d17}, [r1]!
	vmla.f32	q1, q8, d0[0]           @ a comment
	vmla.f32	q2, q8, d0[1]
	vmla.f32	q3, q8, d1[0]
	vmla.f32	q4, q8, d1[1]
	vmla.f32	q5, q8, d0[0]
	subs	r0, r0, #1
	bne	.LBB0_1
	bx	lr
"""


def test_the_inner_loop_with_the_most_multiply_adds_is_the_hot_one() -> None:
    assert [mca.count_fma(body) for body in innermost_loops(KERNEL_A72)] == [4, 1]
    loop = hot_loop(KERNEL_A72)
    assert loop[0] == "ldr\tq16, [x1], #16" and loop[-1] == "b.ne\t.LBB0_2" and len(loop) == 8
    assert hot_loop(KERNEL_A9)[1:3] == ["vmla.f32\tq1, q8, d0[0]", "vmla.f32\tq2, q8, d0[1]"]


def test_calls_and_branches_forward_make_no_loop() -> None:
    assert hot_loop("f:\n\tfmla v0.4s, v1.4s, v2.4s\n\tbl f\n\tb.eq .L\n.L:\n\tret\n") == []


def test_two_branches_to_one_label_are_one_loop() -> None:
    assembly = ".L1:\n\tfmla v0.4s, v1.4s, v2.4s\n\tcbz x1, .L1\n\tfmla v3.4s, v1.4s, v2.4s\n\tb .L1\n"
    assert [len(body) for body in innermost_loops(assembly)] == [4]


def test_no_analyser_says_where_it_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mca.shutil, "which", lambda name: None)
    monkeypatch.setattr(mca.Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(NoAnalyser, match="apt-get install llvm"):
        mca.tool()


def _analyser() -> str:
    try:
        mca.tool()
    except NoAnalyser as error:
        return str(error)
    return ""


analysed = pytest.mark.skipif(bool(_analyser()), reason=_analyser() or "there is one")


@analysed
def test_independent_multiply_adds_are_the_peak() -> None:
    stream = [f"fmla v{number}.4s, v30.4s, v31.s[1]" for number in range(24)]
    found = utilisation(stream, CORTEX_A72)
    assert found.fma == 24 and found.share == pytest.approx(1, abs=0.02)
    assert found.flop_per_cycle == pytest.approx(8, rel=0.02)


@analysed
def test_half_the_lanes_are_no_more_than_the_same_peak() -> None:
    narrow = [f"vmla.f32 d{number}, d28, d29" for number in range(14)]
    wide = [f"vmla.f32 q{number}, q14, q15" for number in range(14)]
    assert utilisation(narrow, CORTEX_A9).share == pytest.approx(utilisation(wide, CORTEX_A9).share / 2, rel=0.05)


@analysed
def test_multiply_adds_that_wait_for_each_other_are_slow() -> None:
    chain = ["fmla v0.4s, v30.4s, v31.4s"] * 4
    assert utilisation(chain, CORTEX_A72).share < 0.5


@analysed
@pytest.mark.parametrize(("assembly", "processor"), [(KERNEL_A72, CORTEX_A72), (KERNEL_A9, CORTEX_A9)])
def test_a_loop_with_loads_is_below_the_peak(assembly: str, processor: mca.Processor) -> None:
    found = utilisation(hot_loop(assembly), processor)
    assert 0.3 < found.share < 0.9
    assert found.cycles > found.fma


@analysed
def test_what_the_analyser_refuses_is_said() -> None:
    with pytest.raises(NoAnalyser, match="llvm-mca"):
        utilisation(["fmla v0.4s, no register"], CORTEX_A72)
