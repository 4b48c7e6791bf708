"""Reading, checking and editing ``fleet.yaml``. Every error names the file, the line and what is allowed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from controller.inventory import SIMULATED_PREFIX, Assignment, Device, Inventory, InventoryError, ModelEntry, suggest
from controller.inventory_reach import KEYS, reach
from controller.inventory_values import Values, line_of, plain
from targets.base import LOCAL_OPTIONS, Option, Postprocess, Preprocess, names

Rules = TypeVar("Rules", Preprocess, Postprocess)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_TOP = ("defaults", "devices", "models", "assign")
_DEFAULTS = ("threads", "tracker", "labels")
_DEVICE = ("name", "target", *KEYS, "labels", "host", "threads", "options", "model")
_MODEL = ("file", "weights", "options", "preprocess", "postprocess", "labels")
_ASSIGN = ("model", "target", "labels", "devices", "weights", "options", "slot", "threads")

_HEAD = """\
# The inventory of `fleet`: which boards there are, and which models belong on them.
# `fleet devices add` and `fleet devices remove` edit this file and keep your comments.

# What holds for every device that does not say otherwise.
defaults:
  # Threads to run models with; 0 takes all cores.
  threads: 0

# One entry per board. Simulated boards (`fleet sim up`) need none.
#  - name: bench-1
#    target: arm64                      # one of: {targets}
#    address: tcp://192.168.7.21:7700   # the agent's socket
#    key: "..."                         # the agent's public key: `fleet-agent show` on the board prints it
#    ssh: fleet@192.168.7.21            # or its SSH server, or a Host of ~/.ssh/config; nothing else has to be open,
#                                       # and neither address nor key is needed: the agent is found and started
#    link: ssh                          # ssh, rpc, or rpc+ssh (TVM RPC through the tunnel); left out: what answers
#    rpc: 192.168.7.21:9090             # its TVM RPC listener, used when the socket is not reachable
#    tracker: 192.168.7.1:9190          # or a TVM tracker, at which the board is known as rpc_key
#    rpc_key: bench-1
#    labels: {{room: lab}}
#    options: {{board: rpi4}}             # build options of all that is built for it
#    host: rack-1                       # boards on one machine are measured one after the other
devices: []

# Models by the name they are called here: the zoo's, or files beside this one.
#  my-net:
#    file: my-net.onnx                  # or a Python function that returns a torch module: package.module:function
#    weights: pretrained                # pretrained, a file, or random:SEED
#    options: {{batch: 1}}
#    preprocess: {{size: [224, 224], mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
#    postprocess: {{kind: detections}}    # outputs boxes, scores, labels, count; classify if left out
#    labels: labels.txt                 # one a line, or a list
models: {{}}

# Which model belongs where, so that `fleet deploy --all` and `fleet bench --all` need no model.
# An entry that names devices beats one with labels, and that beats one with a target.
assign:
"""


def template() -> str:
    """A commented inventory that assigns a small model to every installed target."""
    installed = names()
    lines = [f"  - model: shapes-classifier\n    target: {target}\n" for target in installed]
    return _HEAD.format(targets=", ".join(installed)) + "".join(lines)


def read(path: Path) -> Inventory:
    """Raises :class:`InventoryError` with every mistake in the file, one a line."""
    return check(path, text(path))


def check(path: Path, content: str) -> Inventory:
    """What ``path`` would be with this content. Raises :class:`InventoryError` as `read` does."""
    return _Reader(path).inventory(_parse(path, content))


def write(path: Path, content: str) -> None:
    """Replace the file at once, or not at all, once the new content has been checked."""
    check(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InventoryError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InventoryError(f"{path} is not UTF-8 text") from None


def _parse(path: Path, content: str) -> Any:
    try:
        return YAML(typ="rt").load(content)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = " ".join(str(error.problem or error.context or "not YAML").split())
        raise InventoryError(
            f"{path}:{line}: not YAML: {problem}", hint="`fleet init` shows what one looks like"
        ) from None
    except YAMLError as error:
        raise InventoryError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None


class _Reader(Values):
    """Turns the parsed document into an inventory, collecting every mistake with its line."""

    def inventory(self, document: Any) -> Inventory:
        top = self.mapping(document if document is not None else CommentedMap(), 1, "the inventory", _TOP)
        defaults = self.mapping(top.get("defaults"), line_of(top, "defaults"), "defaults", _DEFAULTS)
        base = {
            "threads": self.integer(defaults, "threads", "defaults"),
            "tracker": self.endpoint(defaults, "tracker", "defaults"),
            "labels": self.labels(defaults, "labels", "defaults"),
        }
        devices: list[Device] = []
        assignments: list[Assignment] = []
        for entry, line in self.sequence(top, "devices"):
            self.device(entry, line, base, devices, assignments)
        models = self.mapping(top.get("models"), line_of(top, "models"), "models", ())
        entries = {str(name): self.model(str(name), models[name], line_of(models, name)) for name in models}
        known = {device.name for device in devices}
        for entry, line in self.sequence(top, "assign"):
            assignments.append(self.assignment(entry, line, known))
        if self.errors:
            lines = [f"{self.path}:{line}: {text}" for line, text in sorted(self.errors)]
            raise InventoryError("\n".join(lines), hint="`fleet init` shows what an inventory looks like")
        return Inventory(path=self.path, devices=tuple(devices), models=entries, assignments=tuple(assignments))

    # --- Entries --------------------------------------------------------------------------------

    def device(
        self, entry: Any, line: int, base: dict[str, Any], devices: list[Device], assignments: list[Assignment]
    ) -> None:
        node = self.mapping(entry, line, "a device", _DEVICE)
        name = self.string(node, "name", "a device", required=line)
        where = f"device '{name}'" if name else "a device"
        line = line_of(node, "name", line)
        if name and not _NAME.fullmatch(name):
            self.wrong(line, f"a device may not be named '{name}': letters, digits, '.', '_' and '-', at most 63")
        elif name.startswith(SIMULATED_PREFIX):
            self.wrong(line, f"a device may not be named '{name}': '{SIMULATED_PREFIX}' is for simulated boards")
        elif any(device.name == name for device in devices):
            self.wrong(line, f"there are two devices named '{name}'")
        target = self.string(node, "target", where, required=line)
        if target and target not in (known := names()):
            self.wrong(line_of(node, "target"), f"{where}: unknown target '{target}'; installed: {', '.join(known)}")
        devices.append(
            Device(
                name=name,
                target=target,
                labels={**base["labels"], **self.labels(node, "labels", where)},
                host=self.string(node, "host", where),
                threads=self.integer(node, "threads", where) or base["threads"],
                options=self.options(node, where),
                **reach(self, node, where, line, base["tracker"]),
            )
        )
        if model := self.string(node, "model", where):
            assignments.append(Assignment(model=model, devices=(name,)))

    def model(self, name: str, entry: Any, line: int) -> ModelEntry:
        where = f"model '{name}'"
        node = self.mapping(entry, line, where, _MODEL)
        file = self.string(node, "file", where)
        if file and not _is_function(file):
            file = str(self.path.absolute().parent / file)
            if not Path(file).is_file():
                self.wrong(line_of(node, "file"), f"{where}: there is no file {file}")
            if Path(file).suffix not in (".onnx", ".pt2", ".fleet"):
                self.wrong(
                    line_of(node, "file"), f"{where}: file must be .onnx, .pt2 or .fleet, or package.module:function"
                )
        return ModelEntry(
            name=name,
            file=file,
            weights=self.string(node, "weights", where),
            options=self.options(node, where),
            preprocess=self.rules(node, "preprocess", Preprocess, where),
            postprocess=self.rules(node, "postprocess", Postprocess, where),
            labels=self.class_names(node, where),
        )

    def rules(self, node: CommentedMap, key: str, kind: type[Rules], where: str) -> Rules | None:
        if node.get(key) is None:
            return None
        try:
            return msgspec.convert(plain(node[key]), kind)
        except msgspec.ValidationError as error:
            self.wrong(line_of(node, key), f"{where}: {key}: {error}")
            return None

    def class_names(self, node: CommentedMap, where: str) -> tuple[str, ...]:
        value = node.get("labels")
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(str(label) for label in value)
        if isinstance(value, str):
            try:
                lines = (self.path.absolute().parent / value).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                self.wrong(line_of(node, "labels"), f"{where}: cannot read labels from {value}: {error}")
                return ()
            return tuple(line.strip() for line in lines if line.strip())
        self.wrong(line_of(node, "labels"), f"{where}: labels must be a list, or a file with one a line")
        return ()

    def assignment(self, entry: Any, line: int, known: Collection[str]) -> Assignment:
        node = self.mapping(entry, line, "an assignment", _ASSIGN)
        model = self.string(node, "model", "an assignment", required=line)
        where = f"assignment of '{model}'"
        target = self.string(node, "target", where)
        if target and target not in (installed := names()):
            self.wrong(
                line_of(node, "target"), f"{where}: unknown target '{target}'; installed: {', '.join(installed)}"
            )
        devices = self.device_names(node, where, known)
        labels = self.labels(node, "labels", where)
        if not (target or labels or devices):
            self.wrong(line, f"{where}: say where: target, labels or devices")
        return Assignment(
            model=model,
            target=target,
            labels=labels,
            devices=devices,
            weights=self.string(node, "weights", where),
            options=self.options(node, where),
            slot=self.string(node, "slot", where) or "default",
            threads=self.integer(node, "threads", where),
        )

    def device_names(self, node: CommentedMap, where: str, known: Collection[str]) -> tuple[str, ...]:
        value = node.get("devices")
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            self.wrong(line_of(node, "devices"), f"{where}: devices must be a list of names")
            return ()
        for name in values:
            # Patterns and simulated boards are looked up when they are used.
            if name not in known and not name.startswith(SIMULATED_PREFIX) and not set(name) & set("*?["):
                self.wrong(line_of(node, "devices"), f"{where}: unknown device '{name}'; {suggest(name, known)}")
        return tuple(values)

    def options(self, node: CommentedMap, where: str) -> dict[str, Option]:
        value = self.mapping(node.get("options"), line_of(node, "options"), f"{where}: options", ())
        found: dict[str, Option] = {}
        for name, option in value.items():
            if isinstance(option, (str, int, float)):
                found[str(name)] = plain(option)
                if name in LOCAL_OPTIONS and (beside := self.path.absolute().parent / str(option)).exists():
                    found[str(name)] = str(beside)
            else:
                self.wrong(line_of(value, name), f"{where}: option '{name}' must be text, a number, true or false")
        return found


def _is_function(text: str) -> bool:
    """Whether a model is what a Python function makes, and no file."""
    if ":" not in text:
        return False
    from controller.zoo import entry

    return entry.is_entry(text)
