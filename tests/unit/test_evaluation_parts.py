"""Maps of classes, and the journal of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.evaluation.classes import match
from controller.evaluation.found import Found
from controller.evaluation.journal import Journal
from targets.base import FleetError

LABELS = ("dog", "TV-monitor", "N/A", "cat")
CATEGORIES = ("cat", "tv monitor", "dog")


def chosen(tmp_path: Path, text: str, name: str = "classes.txt", labels: tuple[str, ...] = LABELS) -> list[int]:
    file = tmp_path / name
    file.write_text(text)
    return match(labels, len(labels) or 4, CATEGORIES, file).categories.tolist()


def refused(tmp_path: Path, text: str, name: str = "classes.txt") -> str:
    with pytest.raises(FleetError) as error:
        chosen(tmp_path, text, name)
    assert error.value.code == "bad-classes"
    return f"{error.value.message} / {error.value.hint}"


def test_classes_by_name() -> None:
    found = match(LABELS, 4, CATEGORIES)
    assert found.categories.tolist() == [2, 1, -1, 0] and found.left_out == ()
    assert found.of([3, 2, 9, -1]).tolist() == [0, -1, -1, -1]
    assert found.of([]).tolist() == []


def test_categories_that_are_no_class_are_told() -> None:
    with pytest.raises(FleetError) as error:
        match(("dog",), 1, CATEGORIES)
    assert "2 of the data set's 3 categories are no class of the model: cat, tv monitor" in error.value.message
    assert "--classes" in error.value.hint
    with pytest.raises(FleetError, match="nothing says what the model's classes are called"):
        match((), 4, CATEGORIES)


def test_classes_from_files(tmp_path: Path) -> None:
    assert chosen(tmp_path, "dog\ntv monitor\n-\ncat\n") == [2, 1, -1, 0]
    assert chosen(tmp_path, "dog\n\n\ncat") == [2, -1, -1, 0]
    assert chosen(tmp_path, json.dumps(["dog", None, None, "cat"]), "c.json") == [2, -1, -1, 0]
    by_name = json.dumps({"TV-monitor": "tv monitor", "3": "cat", "dog": None})
    assert chosen(tmp_path, by_name, "d.json") == [-1, 1, -1, 0]
    assert chosen(tmp_path, "dog\n-\n-\n-\n", labels=()) == [2, -1, -1, -1]
    (tmp_path / "classes.txt").write_text("dog\n-\n-\n-\n")
    assert match(LABELS, 4, CATEGORIES, tmp_path / "classes.txt").left_out == (0, 1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.txt", "dog\ncat\n", "has 2 names, the model 4 classes"),
        ("c.json", '["dog"]', "has 1 names, the model 4 classes"),
        ("c.txt", "dog\nhorse\n-\ncat\n", "names categories that the data set does not have: horse"),
        ("c.json", '{"wolf": "dog"}', "names classes that the model does not have: wolf"),
        ("c.json", '{"4": "dog"}', "names classes that the model does not have: 4"),
        ("c.txt", "-\n-\n-\n-\n", "gives no class a category"),
        ("c.json", '{"dog": 3}', "is no JSON list or object of names"),
        ("c.json", '["dog", "ca', "is no JSON list or object of names"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    assert words in refused(tmp_path, text, name)


def test_a_map_that_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(FleetError, match="cannot be read"):
            match(LABELS, 4, CATEGORIES, path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FleetError, match="is no text"):
        match(LABELS, 4, CATEGORIES, tmp_path / "b.txt")


# --- Journal ------------------------------------------------------------------------------------

KEY = {"device": "board", "bundle": "ab" * 32}
ONE = Found(0, [1, 2], [0.75, 0.1 + 0.2], [(0.1, 1 / 3, 5e-324, 1e9)] * 2, ["ab", "c"])
TWO = Found(5, bad="damaged ä")


def journal(folder: Path, **more: bool) -> Journal:
    return Journal(folder, KEY, **more)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.add([ONE])
    first.add([TWO])
    first.close()
    second = journal(tmp_path)
    assert second.found == {0: ONE, 5: TWO}
    second.close()
    other = Journal(tmp_path, {**KEY, "bundle": "cd" * 32})
    assert other.found == {}
    other.close()
    third = journal(tmp_path, fresh=True)
    assert third.found == {}
    third.add([TWO])
    third.close()
    fourth = journal(tmp_path)
    assert fourth.found == {5: TWO}
    fourth.forget()
    fourth.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_journal_cut_anywhere_gives_what_is_whole(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.add([ONE, TWO])
    first.close()
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        file.write_bytes(data[:cut])
        opened = journal(tmp_path)
        assert len(opened.found) == max(sum(end <= cut for end in ends) - 1, 0)
        # It goes on from there, with nothing of the torn line left.
        opened.add([TWO])
        opened.close()
        again = journal(tmp_path)
        assert again.found[5] == TWO
        again.close()


def test_damage_ends_what_is_believed(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.add([ONE, TWO])
    first.close()
    (file,) = tmp_path.iterdir()
    head, one, two = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(head + two + b'["no", 1]\n' + one)
    opened = journal(tmp_path)
    assert opened.found == {5: TWO}
    opened.close()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    first = journal(tmp_path)
    with pytest.raises(FleetError) as error:
        journal(tmp_path)
    assert error.value.code == "busy"
    first.close()
    journal(tmp_path).close()
