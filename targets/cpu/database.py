"""Choices that were measured to beat the default: a file for each processor, which builds look into.

A file that is not as it must be is refused. An entry that is well-formed and yet names nothing that this compiler could
choose, or that beat another default than this compiler's, comes from another version. It is left out with a warning:
the default then stays. Nothing here imports a compiler: what was tuned is part of the build cache's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from targets.base import FleetError
from targets.cpu.processors import Processor
from targets.files import disk_errors, make_directory, read_bounded, write_atomic
from targets.tuning import Finding

#: Files that come with this package, and the most bytes of one.
FOLDER = Path(__file__).with_name("tuned")
MAX_BYTES = 4 * 1024 * 1024

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Direct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kernel", tag="direct"):
    """As :class:`targets.cpu.kernels.direct.Tile`."""

    blocks: Count
    rows: Count
    columns: Count
    depth: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    strip: Count


class Winograd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kernel", tag="winograd"):
    """As :class:`targets.cpu.kernels.winograd.WinogradTile`, and F(m×m, 3×3)."""

    m: Literal[2, 4]
    order: Literal["groups", "strips", "registers"]
    blocks: Count
    tiles: Count
    strip: Count
    part: Count
    depth: Count


class DepthwiseTile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kernel", tag="depthwise"):
    """As :class:`targets.cpu.kernels.depthwise.Depthwise`."""

    rows: Count
    columns: Count


Choice = Direct | Winograd | DepthwiseTile


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found for one problem. Both times are medians of one interleaved run, in milliseconds."""

    #: `targets.cpu.problem.signature`.
    signature: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
    choice: Choice
    #: The default that it beat. Of a compiler with another one nobody knows whether it beats that too.
    default: Choice
    ms: Milliseconds
    default_ms: Milliseconds
    device: Word
    #: Of the measurement, as YYYY-MM-DD.
    date: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    #: Versions of what it was compiled with.
    toolchain: dict[str, str]


class Database(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A file's contents."""

    version: Literal[1] = 1
    #: As ``uname -m`` says it, and the processor's name.
    machine: Word
    processor: Word
    entries: list[Entry] = []


class Tuned:
    """Entries of one processor by what they are for, as a build asks for them."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Of two entries for one problem the later counts."""
        self.entries: Mapping[str, Entry] = {entry.signature: entry for entry in entries}
        #: What a person should know of entries that could not be used.
        self.warnings: list[str] = []
        #: Problems (`targets.cpu.problem.Problem`) that it was asked for, in order.
        self.asked: list[Hashable] = []

    @property
    def digest(self) -> str:
        """Of what shapes a build: which choice is taken for which problem. Empty without entries."""
        if not self.entries:
            return ""
        pairs = sorted((key, entry.choice, entry.default) for key, entry in self.entries.items())
        return hashlib.sha256(msgspec.json.encode(pairs, order="deterministic")).hexdigest()[:16]


# --- Files --------------------------------------------------------------------------------------


def name_of(machine: str, processor: Processor) -> str:
    """The file's name, wherever it lies. Machines have processors of the same name."""
    return f"{machine}-{processor.name}.json"


def load(machine: str, processor: Processor, option: str = "") -> Tuned:
    """What the option ``tuned`` asks for: ``off``, or a file on top of the one that comes with this package.

    Raises FleetError ``bad-tuning``.
    """
    if option == "off":
        return Tuned()
    files = [FOLDER / name_of(machine, processor), *([Path(option).expanduser()] if option else [])]
    if option and not files[-1].is_file():
        raise FleetError(
            f"option 'tuned': there is no file {option}", code="bad-tuning", hint="name a file of `fleet tune`, or off"
        )
    return Tuned(entry for file in files if file.exists() for entry in read(file, machine, processor).entries)


def read(path: Path, machine: str, processor: Processor) -> Database:
    """A file's contents. Raises FleetError ``bad-tuning`` for one that is damaged or another processor's."""
    hint = "`fleet tune` writes such files; remove it to go without, or build with --option tuned=off"
    try:
        found = msgspec.json.decode(read_bounded(path, MAX_BYTES), type=Database)
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}", code="bad-tuning", hint=hint) from None
    except msgspec.MsgspecError as error:
        raise FleetError(f"{path} holds no tuned choices: {error}", code="bad-tuning", hint=hint) from None
    if (found.machine, found.processor) != (machine, processor.name):
        raise FleetError(
            f"{path} is of {found.machine} {found.processor}, not of {machine} {processor.name}",
            code="bad-tuning",
            hint="name the processor that it is of with --option mcpu, or build with --option tuned=off",
        )
    repeated = len(found.entries) - len({entry.signature for entry in found.entries})
    if repeated:
        raise FleetError(f"{path} has two entries for one problem", code="bad-tuning", hint=hint)
    return found


def keep(
    path: Path, machine: str, processor: Processor, found: Sequence[Finding], toolchain: Mapping[str, str]
) -> None:
    """Bring a file up to date, or make it; raises FleetError ``bad-tuning`` as `read` does.

    Entries stay in the order of their signatures: a repository shows what changed. Where the default was found to be
    the fastest there is no entry, unless the file that comes with this package has one to overrule.
    """
    kept = {entry.signature: entry for entry in read(path, machine, processor).entries} if path.exists() else {}
    packaged = {} if path.resolve() == (FOLDER / path.name).resolve() else load(machine, processor).entries
    for one in found:
        kept.pop(one.signature, None)
        choice = one.choice or (one.default_choice if one.signature in packaged else "")
        if choice:
            kept[one.signature] = Entry(
                signature=one.signature,
                choice=msgspec.json.decode(choice, type=Choice),
                default=msgspec.json.decode(one.default_choice, type=Choice),
                ms=one.ms if one.choice else one.default_ms,
                default_ms=one.default_ms,
                device=one.device,
                date=one.date,
                toolchain=dict(toolchain),
            )
    entries = sorted(kept.values(), key=lambda entry: entry.signature)
    database = Database(machine=machine, processor=processor.name, entries=entries)
    with disk_errors(str(path)):
        make_directory(path.parent)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(database), indent=1) + b"\n")
