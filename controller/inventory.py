"""The inventory: which devices there are, how to reach them, and which models belong on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec

from targets.base import FleetError, Link, Option, Postprocess, Preprocess

#: Names below this prefix belong to the simulated boards of this machine.
SIMULATED_PREFIX = "sim-"


class InventoryError(FleetError):
    """An inventory that cannot be used: names the file, the line and what is allowed."""

    code = "inventory"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One board, and every way to reach it. The agent's own socket is preferred whenever it is reachable."""

    name: str
    target: str
    #: The agent's socket, ``tcp://host:port``.
    address: str = ""
    #: The agent's CURVE public key in Z85 (40 characters): who this device must prove to be.
    key: str = ""
    #: The device's TVM RPC listener, ``host:port``.
    rpc: str = ""
    #: A TVM tracker at which the device registers under ``rpc_key``, ``host:port``.
    tracker: str = ""
    rpc_key: str = ""
    #: Where its SSH server is, ``[user@]host[:port]`` or a name of ``ssh_config``; see :mod:`controller.ssh`.
    ssh: str = ""
    #: Files of their own instead of the user's: configuration, private key, known hosts.
    ssh_config: str = ""
    ssh_identity: str = ""
    ssh_known_hosts: str = ""
    #: The agent's directory on the device, for what reaches it over SSH; empty: the agent's default.
    agent_home: str = ""
    #: How the agent is started over SSH when it does not run; empty: ``fleet-agent run`` with this device's target.
    agent_command: tuple[str, ...] = ()
    #: Which of the ways are used, and what goes where: ``rpc``, ``ssh``, or ``rpc+ssh``, which is TVM RPC through the
    #: tunnel; empty: whatever answers.
    link: Link | Literal[""] = ""
    labels: dict[str, str] = {}
    #: Name of the machine that several boards share: only one board of it is measured at a time.
    host: str = ""
    #: Threads to run models with; 0 takes all cores.
    threads: int = 0
    #: Build options of everything that is built for it, such as which board it is; a model's own are on top.
    options: dict[str, Option] = {}
    simulated: bool = False
    #: For a simulated board, the folder it lives in: its address changes when it is started again.
    folder: str = ""

    @property
    def machine(self) -> str:
        """What must not be disturbed while this device is measured."""
        if self.host:
            return self.host
        for endpoint in (self.address.removeprefix("tcp://"), self.rpc):
            if endpoint:
                return endpoint.rpartition(":")[0]
        return self.name


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the inventory names: a zoo model or a file, with its settings."""

    name: str
    #: Path of an ``.onnx``, ``.pt2`` or ``.fleet`` file; empty for the zoo's model of this name.
    file: str = ""
    weights: str = ""
    options: dict[str, Option] = {}
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` belongs on every device that matches all conditions given."""

    model: str
    target: str = ""
    labels: dict[str, str] = {}
    devices: tuple[str, ...] = ()
    weights: str = ""
    options: dict[str, Option] = {}
    slot: str = "default"
    threads: int = 0

    def matches(self, device: Device) -> bool:
        return (
            (not self.target or self.target == device.target)
            and all(device.labels.get(key) == value for key, value in self.labels.items())
            and (not self.devices or any(fnmatchcase(device.name, pattern) for pattern in self.devices))
        )

    @property
    def rank(self) -> int:
        """Which assignment wins when two want the same slot: naming devices beats labels beats a target."""
        return 3 if self.devices else 2 if self.labels else 1 if self.target else 0


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet.yaml` says, with this machine's simulated boards added."""

    path: Path
    devices: tuple[Device, ...] = ()
    models: dict[str, ModelEntry] = {}
    assignments: tuple[Assignment, ...] = ()

    @classmethod
    def load(cls, path: Path, *, must_exist: bool = True) -> Inventory:
        """Read and check a file. Without one, and unless it ``must_exist``, the inventory is empty."""
        if not path.exists():
            if must_exist:
                raise InventoryError(
                    f"there is no inventory {path}", code="no-inventory", hint="`fleet init` writes a commented one"
                )
            return cls(path=path)
        # YAML is slow to import, and simulated boards need none.
        from controller.inventory_file import read

        return read(path)

    def merged(self, boards: Iterable[Device]) -> Inventory:
        """This inventory with more devices. Raises InventoryError when two have the same name."""
        known = {device.name for device in self.devices}
        added = tuple(boards)
        for board in added:
            if board.name in known:
                raise InventoryError(
                    f"{self.path} has a device named '{board.name}', and so has `fleet sim`",
                    hint=f"rename one of them; names with '{SIMULATED_PREFIX}' belong to simulated boards",
                )
        return msgspec.structs.replace(self, devices=self.devices + added)

    def device(self, name: str) -> Device:
        """The device called ``name``. Raises FleetError ``unknown-device``."""
        return self.select([name])[0]

    def select(
        self,
        devices: Sequence[str] = (),
        targets: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        everything: bool = False,
    ) -> list[Device]:
        """See `Fleet.select`. ``devices`` may hold shell patterns such as ``sim-*``."""
        labels = labels or {}
        if not (devices or targets or labels or everything):
            raise FleetError(
                "no device was selected",
                code="nothing-selected",
                hint="name some with --device, --target or --label, or take --all",
            )
        for pattern in devices:
            if not any(fnmatchcase(d.name, pattern) for d in self.devices):
                raise _unknown("device", pattern, [d.name for d in self.devices])
        for target in targets:
            self._check_target(target)
        for key, value in labels.items():
            values = {d.labels[key] for d in self.devices if key in d.labels}
            if not values:
                raise _unknown("label", key, sorted({k for d in self.devices for k in d.labels}))
            if value not in values:
                raise _unknown("label", f"{key}={value}", sorted(f"{key}={v}" for v in values))
        chosen = [
            d
            for d in self.devices
            if (not devices or any(fnmatchcase(d.name, pattern) for pattern in devices))
            and (not targets or d.target in targets)
            and all(d.labels.get(key) == value for key, value in labels.items())
        ]
        if not chosen:
            raise FleetError(
                "no device matches" if self.devices else "there are no devices",
                code="nothing-matched",
                hint="`fleet devices` lists what there is; `fleet sim up` starts simulated boards",
            )
        return chosen

    def assigned(self, device: Device) -> list[Assignment]:
        """What belongs on a device: one assignment per slot, the most specific one, the later one of equals."""
        slots: dict[str, Assignment] = {}
        for assignment in self.assignments:
            if assignment.matches(device):
                held = slots.get(assignment.slot)
                if held is None or assignment.rank >= held.rank:
                    slots[assignment.slot] = assignment
        return list(slots.values())

    def _check_target(self, target: str) -> None:
        if any(d.target == target for d in self.devices):
            return
        from targets.base import names

        installed = names()
        if target not in installed:
            raise _unknown("target", target, sorted({d.target for d in self.devices} | set(installed)))


def _unknown(kind: str, given: str, known: Sequence[str]) -> FleetError:
    return FleetError(f"there is no {kind} '{given}'", code=f"unknown-{kind}", hint=suggest(given, known))


def suggest(given: str, known: Iterable[Any]) -> str:
    """What someone who wrote ``given`` may have meant, or else all there is."""
    from difflib import get_close_matches

    names = [str(name) for name in known]
    close = get_close_matches(given, names, n=3)
    if close:
        return "did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    if not names:
        return "there are none at all"
    shown = ", ".join(names[:12])
    return f"there is: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
