"""Reading torch.export archives: what is in them is checked, and nothing in them is ever run."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from targets import pt2_model
from targets.base import ModelError

Members = dict[str, bytes]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.dense(x) + self.shift
        return y, torch.relu(y)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=batch), path)
    return path


def changed(saved: Path, path: Path, change: Callable[[Members], None]) -> Path:
    """A copy of an archive with some of its members changed."""
    with zipfile.ZipFile(saved) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
    return path


def program(members: Members, change: Callable[[dict[str, Any]], None]) -> None:
    read = json.loads(members["models/model.json"])
    change(read)
    members["models/model.json"] = json.dumps(read).encode()


def refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        pt2_model.read(path)
    assert all(word in caught.value.message for word in words), caught.value.message
    return caught.value


def test_what_it_takes_and_gives_is_read_without_torch(saved: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from targets import pt2_model\n"
        "found = pt2_model.read(Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
        "print([(s.shape, s.dtype) for s in (*found.inputs, *found.outputs)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[((-1, 4), 'float32'), ((-1, 3), 'float32'), ((-1, 3), 'float32')]"


def test_the_clean_copy_computes_the_same(saved: Path) -> None:
    values = torch.arange(8.0).reshape(2, 4)
    clean = pt2_model.read(saved).load().module()(values)
    original = torch.export.load(saved).module()(values)
    assert all(torch.equal(a, b) for a, b in zip(clean, original, strict=True))


def test_pickled_weights_are_refused_unread(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    def plant(members: Members) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(members[name])
        config["config"]["dense.weight"]["use_pickle"] = True
        members[name] = json.dumps(config).encode()
        buffer = io.BytesIO()
        torch.save(Bomb(marker), buffer)
        members[f"data/weights/{config['config']['dense.weight']['path_name']}"] = buffer.getvalue()

    path = changed(saved, tmp_path / "bad.pt2", plant)
    refused(path, "dense.weight", "pickled")
    assert not marker.exists()
    # The very file that torch itself would have executed.
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert marker.exists()


def test_pickled_constants_are_refused_unread(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    def plant(members: Members) -> None:
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        members["data/constants/model_constants_config.json"] = json.dumps({"config": {"object": payload}}).encode()
        members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(marker))

    refused(changed(saved, tmp_path / "bad.pt2", plant), "object", "pickled")
    assert not marker.exists()


def test_sample_inputs_are_not_unpickled(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    def plant(members: Members) -> None:
        buffer = io.BytesIO()
        torch.save(((Bomb(marker),), {}), buffer)
        members["data/sample_inputs/model.pt"] = buffer.getvalue()

    pt2_model.read(changed(saved, tmp_path / "bad.pt2", plant)).load()
    assert not marker.exists()


def test_guards_are_dropped(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    guard = f"open({str(marker)!r}, 'w') is not None"

    def plant(members: Members) -> None:
        program(members, lambda read: read.update(guards_code=[guard]))

    pt2_model.read(changed(saved, tmp_path / "bad.pt2", plant)).load().module()(torch.zeros(2, 4))
    assert not marker.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('pathlib').Path('MARKER').touch()",
        "s0.__class__",
        "Symbol('s0').func",
        "Symbol('__import__')",
        "lambda: 0",
        "[s0 for s0 in (1,)]",
        "print(s0)",
        "'s0'",
        "s0" + "+s0" * 2000,
    ],
)
def test_shape_expressions_are_arithmetic_only(expression: str, saved: Path, tmp_path: Path) -> None:
    def plant(read: dict[str, Any]) -> None:
        sizes = read["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}

    path = changed(saved, tmp_path / "bad.pt2", lambda members: program(members, plant))
    refused(path, "shape expression")


@pytest.mark.parametrize(
    "operator",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.add.Tensor.__class__",
        "torch.ops.higher_order.cond",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "#custom",
        "os.system",
    ],
)
def test_operators_that_do_not_compute_are_refused(operator: str, saved: Path, tmp_path: Path) -> None:
    def plant(read: dict[str, Any]) -> None:
        read["graph_module"]["graph"]["nodes"][0]["target"] = operator

    refused(changed(saved, tmp_path / "bad.pt2", lambda members: program(members, plant)), operator)


def test_containers_that_import_something_are_refused(saved: Path, tmp_path: Path) -> None:
    tree = {"type": "collections.defaultdict", "context": "{}", "children_spec": []}

    def plant(read: dict[str, Any]) -> None:
        read["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, tree])

    refused(changed(saved, tmp_path / "bad.pt2", lambda members: program(members, plant)), "collections.defaultdict")


def test_two_programs_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    def plant(members: Members) -> None:
        members["models/other.json"] = members["models/model.json"]

    error = refused(changed(saved, tmp_path / "bad.pt2", plant), "2 programs", "model, other")
    assert "file of its own" in error.hint


def test_compiled_code_is_refused(saved: Path, tmp_path: Path) -> None:
    def plant(members: Members) -> None:
        members["data/aotinductor/model/code.so"] = b"\x7fELF"

    refused(changed(saved, tmp_path / "bad.pt2", plant), "machine code")


def test_files_that_are_no_archives(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for name, data in {"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(data)
        assert refused(path, "not a torch.export archive").hint
    refused(tmp_path / "missing.pt2", "cannot read", "No such file")
    refused(tmp_path, "cannot read")


def test_archives_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("top/readme", "hello")
    refused(path, "no exported program")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "3")
        archive.writestr("serialized_state_dict.pt", pickle.dumps({}))
    assert "newer" in refused(path, "old torch").hint


@pytest.mark.parametrize("text", [b"{}", b"[]", b"not json", b'{"graph_module": 3}', b"[" * 100_000])
def test_graphs_that_are_not_graphs(text: bytes, saved: Path, tmp_path: Path) -> None:
    def plant(members: Members) -> None:
        members["models/model.json"] = text

    refused(changed(saved, tmp_path / "bad.pt2", plant), "understood")


def test_an_archive_that_unpacks_to_far_more_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", bytes(64 << 20))
    refused(path, "far more than the file's size")
