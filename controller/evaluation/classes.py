"""Which of the model's classes is which category of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from controller.datasets.base import some
from targets.base import FleetError
from targets.files import read_bounded

_MAX_FILE = 8 << 20
#: Stands in a file of names for a class that the data set does not have.
_NONE = ("", "-")


@dataclass(frozen=True)
class Classes:
    #: (classes,): index of the category that each of the model's classes stands for, or -1.
    categories: npt.NDArray[np.int64]
    #: Indices of the categories that no class stands for: they are not measured.
    left_out: tuple[int, ...] = ()

    def of(self, labels: Sequence[int]) -> npt.NDArray[np.int64]:
        """Categories of the model's classes; -1 for those that the data set does not have."""
        given = np.asarray(labels, np.int64)
        known = (given >= 0) & (given < len(self.categories))
        return (
            np.where(known, self.categories[np.where(known, given, 0)], -1) if len(self.categories) else given * 0 - 1
        )


def match(labels: Sequence[str], count: int | None, categories: Sequence[str], file: Path | None = None) -> Classes:
    """The map from a model's ``count`` classes (None: nobody knows) called ``labels`` to ``categories``.

    By name, whatever the case, spaces and underscores; or as ``file`` says: names of categories, one a line, in the
    order of the model's classes, or JSON that is such a list or an object of the model's names (or numbers) to names
    of categories. ``-`` and null stand for no category.

    Raises :class:`FleetError` (``bad-classes``): a wrong length, names that are none, categories without a class.
    """
    if file is not None:
        names = _from_file(file, labels, count)
        unknown = sorted({name for name in names if name is not None} - set(categories))
        if unknown:
            raise _bad(f"{file} names categories that the data set does not have: {some(unknown)}", categories)
        index = {name: number for number, name in enumerate(categories)}
        chosen = [-1 if name is None else index[name] for name in names]
        if all(each < 0 for each in chosen):
            raise _bad(f"{file} gives no class a category", categories)
        return Classes(np.array(chosen, np.int64), tuple(sorted(set(range(len(categories))) - set(chosen))))
    if not labels:
        raise _bad("nothing says what the model's classes are called", categories)
    exact = {name: number for number, name in enumerate(categories)}
    alike = {_plain(name): number for number, name in enumerate(categories)}
    chosen = [exact.get(name, alike.get(_plain(name), -1)) for name in labels]
    without = [name for number, name in enumerate(categories) if number not in chosen]
    if without:
        raise _bad(
            f"{len(without)} of the data set's {len(categories)} categories are no class of the model: {some(without)}",
            labels,
            "the model's are",
        )
    return Classes(np.array(chosen, np.int64))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _from_file(file: Path, labels: Sequence[str], count: int | None) -> list[str | None]:
    try:
        text = read_bounded(file, _MAX_FILE).decode()
    except OSError as error:
        raise _bad(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _bad(f"{file} is no text") from None
    names: list[str | None]
    if file.suffix.lower() == ".json":
        try:
            given = msgspec.json.decode(text, type=list[str | None] | dict[str, str | None])
        except (msgspec.DecodeError, RecursionError) as error:
            raise _bad(f"{file} is no JSON list or object of names: {error}") from None
        if isinstance(given, dict):
            return _from_object(file, given, labels, count)
        names = given
    else:
        names = [None if (name := line.strip()) in _NONE else name for line in text.splitlines()]
    if count is not None and len(names) != count:
        raise _bad(f"{file} has {len(names)} names, the model {count} classes")
    return names


def _from_object(
    file: Path, given: Mapping[str, str | None], labels: Sequence[str], count: int | None
) -> list[str | None]:
    numbers: dict[int, str | None] = {}
    most = count if count is not None else len(labels)
    unknown = []
    for key, name in given.items():
        found = [number for number, label in enumerate(labels) if label == key]
        if not found and key.isdecimal() and int(key) < most:
            found = [int(key)]
        if not found:
            unknown.append(key)
        numbers.update(dict.fromkeys(found, name))
    if unknown:
        raise _bad(f"{file} names classes that the model does not have: {some(unknown)}", labels, "the model's are")
    return [numbers.get(number) for number in range(most)]


def _bad(message: str, names: Sequence[str] = (), what: str = "the data set's are") -> FleetError:
    hint = f"{what} {some(names)}; " if names else ""
    file = "--classes FILE has the category of each of the model's classes, one a line (- for none), or a JSON object"
    return FleetError(message, code="bad-classes", hint=hint + file)
