"""The simulator against forty programs whose results the original simulator and the original hardware source gave."""

import json
from pathlib import Path

import numpy as np
import pytest

from targets.vta import isa
from targets.vta.config import DEFAULT
from targets.vta.simulator import Order, Semantics, Simulator

PROGRAMS = sorted((Path(__file__).parents[1] / "data" / "vta_conformance").glob("program_*.npz"))


def test_all_are_there() -> None:
    assert len(PROGRAMS) == 40


@pytest.mark.parametrize("semantics", ["hw", "fsim"])
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_bytes_and_counters(path: Path, semantics: Semantics) -> None:
    with np.load(path) as program:
        table = isa.decode(program["insn"].tobytes(), DEFAULT)
        memory, out_base, out = program["dram_in"], int(program["out_base"]), program["out"]
        expected = json.loads(program["stats"].tobytes())
    before = np.zeros(max(len(memory), out_base + len(out)), np.uint8)
    before[: len(memory)] = memory
    orders: list[tuple[Order, int]] = [("program", 0), ("random", 1), ("random", 2)]
    for order, seed in orders:
        after = before.copy()
        counters = Simulator(DEFAULT, semantics=semantics, order=order, seed=seed, fill=0x5A).run(table, after)
        assert counters.to_dict() == expected
        np.testing.assert_array_equal(after[out_base : out_base + len(out)], out)
        np.testing.assert_array_equal(after[:out_base], before[:out_base])
        np.testing.assert_array_equal(after[out_base + len(out) :], before[out_base + len(out) :])


@pytest.mark.parametrize("path", PROGRAMS[:8], ids=lambda path: path.stem)
def test_instructions_encode_to_the_bytes_they_came_from(path: Path) -> None:
    with np.load(path) as program:
        stream = program["insn"].tobytes()
    assert isa.encode(isa.decode(stream, DEFAULT), DEFAULT) == stream
