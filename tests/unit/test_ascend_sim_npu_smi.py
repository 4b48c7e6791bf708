"""What the simulated npu-smi prints, held against captures and the formats of the tool's source: one file per case."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.ascend.sim import board, chips, npu_smi, smi_table
from targets.base import FleetError

CASES = sorted((Path(__file__).parent / "ascend/npu_smi").glob("*.json"))


def describe(folder: Path, text: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / board.FILE_NAME).write_text(json.dumps(text))
    return folder


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_output_is_the_tools(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = json.loads(path.read_text())
    status = npu_smi.main(describe(tmp_path, case["board"]), case["arguments"])
    assert capsys.readouterr().out.split("\n") == [*case["output"], ""]
    assert status == case["status"]


@pytest.mark.parametrize(
    ("arguments", "first", "status"),
    [
        ([], "Usage: npu-smi <Command|-h|-v> [Options...]", 215),
        (["nonsense"], "Command or option is not found.", 211),
        (["info", "-t", "usages"], "", 215),
        (["info", "-t", "usages", "-i", "3"], "Invalid card id.", 215),
        (["info", "-t", "usages", "-i", "x"], "Invalid card id.", 215),
        (["info", "-t", "usages", "-i", "0", "-c", "1"], "Invalid chip id.", 215),
        (["info", "-q"], "Command or option is not found.", 211),
    ],
)
def test_wrong_usage_has_its_codes(
    arguments: list[str], first: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npu_smi.main(describe(tmp_path, {}), arguments) == status
    assert capsys.readouterr().out.split("\n")[0] == first


@pytest.mark.parametrize(
    ("name", "family", "soc"),
    [
        ("310", "310", "Ascend310"),
        ("310P3", "310P", "Ascend310P3"),
        ("310B4", "310B", "Ascend310B4"),
        ("910A", "910", "Ascend910A"),
        # No digit behind the letter: the first generation.
        ("910B", "910", "Ascend910B"),
        ("910B2C", "910B", "Ascend910B2C"),
    ],
)
def test_names_say_the_family_and_the_soc_version(name: str, family: str, soc: str) -> None:
    assert chips.family_of(name) == family
    assert chips.soc_version(name) == soc
    assert chips.known_soc(soc)


@pytest.mark.parametrize(
    "soc", ["", "310P3", "Ascend999", "ascend310P3", "Ascend310P", "AscendAscend910", "Ascend310_x"]
)
def test_other_soc_versions_are_not_known(soc: str) -> None:
    assert not chips.known_soc(soc)


def test_versions_are_ordered() -> None:
    versions = ["20.2.2", "21.0.3.1", "22.0.0", "22.0.2", "22.0.4", "23.0.rc3", "23.0.0", "24.1.1", "25.2.0"]
    assert sorted(versions, key=board.version_key) == versions


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"cards": [{"name": "311"}]}',
        b'{"cards": [{"name": "310"}, {"name": "310"}]}',
        b'{"cards": [{"name": "310", "chips": []}]}',
        b'{"surprise": 1}',
        b'{"driver": "new"}',
        b'{"faults": {"atc": {"kind": "flood"}}}',
        b'{"faults": {"atc": {"kind": "cut-summary"}}}',
        b'{"cards": [{"name": "310", "chips": [{"processes": [{"pid": 1, "name": "\\u001b[2J", "megabytes": 1}]}]}]}',
        b" " * (board.MAX_FILE + 1),
    ],
)
def test_a_board_that_makes_no_sense_is_refused(text: bytes) -> None:
    with pytest.raises(FleetError) as error:
        board.parse(text)
    assert error.value.code == "bad-board"


def test_a_layout_that_nobody_published_is_refused() -> None:
    old = board.Board(cards=(board.Card("910A"),), driver="21.0.2")
    with pytest.raises(FleetError, match=r"21\.0\.2"):
        list(smi_table.table(old))


names = st.sampled_from(["310", "310B1", "310B4", "310P3", "910A", "910B3", "Ascend910"])
amounts = st.tuples(st.integers(0, 99999), st.integers(0, 99999))
one_chip = st.builds(
    board.Chip,
    power=st.none() | st.floats(0, 999.9),
    temperature=st.integers(-40, 150),
    aicore=st.integers(0, 100),
    memory=amounts,
    hbm=amounts,
    processes=st.lists(
        st.builds(
            board.Process, st.integers(1, 4194304), st.text("abc-./", min_size=1, max_size=60), st.integers(0, 99999)
        ),
        max_size=3,
    ).map(tuple),
)


@given(
    name=names,
    chips_per_card=st.lists(st.lists(one_chip, min_size=1, max_size=4), min_size=1, max_size=3),
    driver=st.sampled_from(["22.0.4", "23.0.rc3", "23.0.0", "25.2.0"]),
)
def test_every_table_is_a_rectangle(name: str, chips_per_card: list[list[board.Chip]], driver: str) -> None:
    cards = tuple(board.Card(name, npu=32 * index, chips=tuple(held)) for index, held in enumerate(chips_per_card))
    made = board.Board(cards=cards, driver=driver)
    lines = list(smi_table.table(made))
    assert len({len(line) for line in lines}) == 1
    assert all(line[0] == line[-1] and line[0] in "|+" for line in lines)
    chip_rows = sum(
        line.startswith(f"| {card.npu:<{5 if chips.has_hbm(card.family) else 7}} {name}")
        for card in cards
        for line in lines
    )
    assert chip_rows == made.chip_count


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_board_or_an_error(data: bytes) -> None:
    try:
        found = board.parse(data)
    except FleetError as error:
        assert error.code == "bad-board"
    else:
        assert board.parse(msgspec.json.encode(found)) == found
