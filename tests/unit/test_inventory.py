"""The inventory: reading, every mistake with its line, selection, assignment, edits that keep comments."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.home import Home
from controller.inventory import Device, Inventory, InventoryError
from controller.inventory_edit import add, remove
from controller.inventory_file import template, write
from targets.base import FleetError

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

GOOD = f"""\
# our boards
defaults:
  threads: 2
  tracker: 10.0.0.1:9190
devices:
  - name: one
    target: x86
    address: tcp://10.0.0.2:7700
    key: "{KEY}"
    labels: {{room: lab, rack: 3}}
  - name: two   # the slow one
    target: arm64
    rpc: "[fe80::1]:9090"
    threads: 1
    host: rack-1
    model: special
  - name: three
    target: arm64
    rpc_key: three
    labels: {{room: attic}}
models:
  special:
    file: nets/special.onnx
    weights: random:7
    options: {{batch: 4, opt: O3, fast: true}}
    preprocess: {{size: [32, 48], colour: L, mean: [0.5], std: [0.5]}}
    labels: names.txt
assign:
  - model: shapes-classifier
    target: arm64
  - model: shapes-ssd
    labels: {{room: lab}}
    options: {{batch: 2}}
  - model: resnet18
    devices: [th*]
    slot: second
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "special.onnx").write_bytes(b"x")
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    path = tmp_path / "fleet.yaml"
    path.write_text(GOOD)
    return path


def test_everything_is_read(good: Path) -> None:
    inventory = Inventory.load(good)
    one, two, three = inventory.devices
    assert (one.address, one.key, one.labels, one.threads) == (
        "tcp://10.0.0.2:7700",
        KEY,
        {"room": "lab", "rack": "3"},
        2,
    )
    assert (two.rpc, two.threads, two.host, two.machine) == ("[fe80::1]:9090", 1, "rack-1", "rack-1")
    assert (three.tracker, three.rpc_key, three.machine) == ("10.0.0.1:9190", "three", "three")
    assert one.machine == "10.0.0.2"
    special = inventory.models["special"]
    assert special.file == str(good.parent / "nets" / "special.onnx")
    assert special.options == {"batch": 4, "opt": "O3", "fast": True}
    assert special.options["fast"] is True
    assert special.preprocess is not None and special.preprocess.size == (32, 48)
    assert special.labels == ("cat", "dog")


def test_assignments_by_rank_and_slot(good: Path) -> None:
    inventory = Inventory.load(good)
    by_name = {d.name: [(a.model, a.slot) for a in inventory.assigned(d)] for d in inventory.devices}
    assert by_name == {
        "one": [("shapes-ssd", "default")],
        "two": [("special", "default")],
        "three": [("shapes-classifier", "default"), ("resnet18", "second")],
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("foo: 1\n", 1, "unknown key 'foo'; allowed: defaults, devices, models, assign"),
        ("- a\n", 1, "the inventory must be a mapping"),
        ("devices: {a: b}\n", 1, "devices must be a list"),
        ("devices:\n  - name: a\n", 2, "target is missing"),
        ("devices:\n  - target: x86\n    rpc: h:1\n", 2, "name is missing"),
        ("devices:\n  - name: a\n    taget: x86\n", 3, "unknown key 'taget'; allowed: name, target"),
        ("devices:\n  - name: a b\n    target: x86\n    rpc: h:1\n", 2, "may not be named 'a b'"),
        ("devices:\n  - name: sim-1\n    target: x86\n    rpc: h:1\n", 2, "is for simulated boards"),
        ("devices:\n  - name: 7\n    target: x86\n    rpc: h:1\n", 2, 'put it in quotes: "7"'),
        ("devices:\n  - name: a\n    target: x87\n    rpc: h:1\n", 3, "unknown target 'x87'; installed:"),
        ("devices:\n  - name: a\n    target: x86\n", 2, "no way to reach it"),
        ("devices:\n  - name: a\n    target: x86\n    address: h:1\n    key: k\n", 4, "must be tcp://HOST:PORT"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:70000\n", 4, "rpc must be HOST:PORT"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    key: abc\n", 5, "40 characters of Z85"),
        ("devices:\n  - name: a\n    target: x86\n    address: tcp://h:1\n", 2, "an address needs the agent's key"),
        ("devices:\n  - name: a\n    target: x86\n    tracker: h:1\n", 4, "a tracker needs rpc_key"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    threads: -1\n", 5, "whole number from 0 to 1024"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    threads: yes\n", 5, "whole number from 0 to 1024"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    labels: [b]\n", 5, "labels must be a mapping"),
        (
            "devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    labels:\n      b: 1.5\n",
            6,
            "label 'b' must be text",
        ),
        (
            "devices:\n  - {name: a, target: x86, rpc: 'h:1'}\n  - {name: a, target: x86, rpc: 'h:2'}\n",
            3,
            "two devices named 'a'",
        ),
        ("devices:\n  - name: a\n    target: x86\n    ssh: 'a b'\n", 4, "'a b' is not [user@]host[:port]"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: 7\n", 4, "ssh must be text"),
        ("devices:\n  - name: a\n    target: x86\n    ssh:\n      identity: k\n", 4, "ssh: to is missing"),
        ("devices:\n  - name: a\n    target: x86\n    ssh:\n      to: -x\n", 5, "'-x' is not [user@]host[:port]"),
        ("devices:\n  - name: a\n    target: x86\n    ssh:\n      to: b\n      port: 1\n", 6, "unknown key 'port'"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: b\n    link: usb\n", 5, "link must be rpc, ssh, rpc+ssh"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    link: rpc+ssh\n", 5, "needs ssh"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: b\n    link: rpc\n", 5, "link 'rpc' needs rpc"),
        ("devices:\n  - name: a\n    target: x86\n    rpc: h:1\n    agent: {home: /a}\n", 5, "there is no ssh"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: b\n    agent: {home: a}\n", 5, "home must be absolute"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: b\n    agent: {command: run}\n", 5, "a list of words"),
        ("devices:\n  - name: a\n    target: x86\n    ssh: b\n    agent: {pid: 1}\n", 5, "unknown key 'pid'"),
        ("defaults:\n  thread: 1\n", 2, "unknown key 'thread'; allowed: threads, tracker, labels"),
        ("models:\n  m:\n    file: gone.onnx\n", 3, "there is no file"),
        ("models:\n  m:\n    preprocess: {size: 3}\n", 3, "preprocess: Expected"),
        ("models:\n  m:\n    options: {a: [1]}\n", 3, "option 'a' must be text, a number, true or false"),
        ("models:\n  m:\n    labels: gone.txt\n", 3, "cannot read labels"),
        ("assign:\n  - target: x86\n", 2, "model is missing"),
        ("assign:\n  - model: m\n", 2, "say where: target, labels or devices"),
        ("assign:\n  - model: m\n    devices: [zz]\n", 3, "unknown device 'zz'"),
        ("assign:\n  - model: m\n    target: zz\n", 3, "unknown target 'zz'; installed:"),
        ("devices:\n  - name: [\n", 3, "not YAML"),
        ("devices:\n\t- a\n", 2, "not YAML"),
    ],
)
def test_mistakes_name_file_line_and_what_is_allowed(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(InventoryError) as caught:
        Inventory.load(path)
    lines = caught.value.message.splitlines()
    assert any(found.startswith(f"{path}:{line}: ") and words in found for found in lines), lines
    assert caught.value.code == "inventory"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("devices:\n  - name: a\n    target: x86\nfoo: 1\n")
    with pytest.raises(InventoryError) as caught:
        Inventory.load(path)
    assert [text.split(":")[1] for text in caught.value.message.splitlines()] == ["2", "4"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InventoryError) as caught:
        Inventory.load(tmp_path / "fleet.yaml")
    assert caught.value.code == "no-inventory" and "fleet init" in caught.value.hint
    assert Inventory.load(tmp_path / "fleet.yaml", must_exist=False).devices == ()


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InventoryError, match="not UTF-8"):
        Inventory.load(path)


def test_selection(good: Path) -> None:
    inventory = Inventory.load(good)

    def names(*args: object, **conditions: object) -> list[str]:
        return [d.name for d in inventory.select(*args, **conditions)]  # type: ignore[arg-type]

    assert names(everything=True) == ["one", "two", "three"]
    assert names(["three", "one"]) == ["one", "three"]
    assert names(["t*"]) == ["two", "three"]
    assert names(targets=["arm64"]) == ["two", "three"]
    assert names(targets=["arm64"], labels={"room": "attic"}) == ["three"]


@pytest.mark.parametrize(
    ("conditions", "code", "hint"),
    [
        ({"devices": ["onne"]}, "unknown-device", "did you mean 'one'"),
        ({"targets": ["arm46"]}, "unknown-target", "did you mean 'arm64'"),
        ({"labels": {"rom": "lab"}}, "unknown-label", "did you mean 'room'"),
        ({"labels": {"room": "cellar"}}, "unknown-label", "room=lab"),
        ({"targets": ["x86"], "labels": {"room": "attic"}}, "nothing-matched", "fleet devices"),
        ({}, "nothing-selected", "--all"),
    ],
)
def test_selecting_what_is_not_there(good: Path, conditions: dict[str, object], code: str, hint: str) -> None:
    with pytest.raises(FleetError) as caught:
        Inventory.load(good).select(**conditions)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert hint in caught.value.hint


def test_an_installed_target_without_devices_is_known(good: Path) -> None:
    with pytest.raises(FleetError) as caught:
        Inventory.load(good).select(targets=["armv7"])
    assert caught.value.code == "nothing-matched"


def test_merging_refuses_equal_names(good: Path) -> None:
    inventory = Inventory.load(good)
    merged = inventory.merged([Device(name="sim-1", target="x86", simulated=True)])
    assert [d.name for d in merged.devices] == ["one", "two", "three", "sim-1"]
    with pytest.raises(InventoryError, match="'one'"):
        inventory.merged([Device(name="one", target="x86")])


def test_the_template_is_valid_and_edits_keep_comments(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    write(path, template())
    original = path.read_text()
    pi = Device(name="pi", target="arm64", address="tcp://pi.lab:7700", key=KEY, labels={"room": "lab", "no": "3"})
    odd = Device(
        name="007", target="x86", rpc="[::1]:9090", host="null", threads=3, options={"mcpu": "host", "cores": 2}
    )
    add(path, pi)
    add(path, odd)
    loaded = Inventory.load(path)
    assert loaded.devices == (pi, odd)
    comments = [line for line in original.splitlines() if "#" in line]
    assert [line for line in path.read_text().splitlines() if "#" in line and KEY not in line] == comments
    remove(path, "pi")
    assert Inventory.load(path).devices == (odd,)
    remove(path, "007")
    assert Inventory.load(path).devices == ()
    assert path.read_text().replace("devices:\n", "devices: []\n") == original


def test_editing_between_other_entries(good: Path) -> None:
    remove(good, "two")
    text = good.read_text()
    assert text.startswith("# our boards\n") and "the slow one" not in text and "special:" in text
    add(good, Device(name="four", target="x86", rpc="h:4"))
    assert [d.name for d in Inventory.load(good).devices] == ["one", "three", "four"]


def test_refused_edits_change_nothing(good: Path) -> None:
    before = good.read_text()
    with pytest.raises(FleetError) as caught:
        remove(good, "fuor")
    assert caught.value.code == "unknown-device"
    with pytest.raises(InventoryError, match="two devices named 'one'"):
        add(good, Device(name="one", target="x86", rpc="h:1"))
    with pytest.raises(InventoryError, match="may not be named"):
        add(good, Device(name="a: b", target="x86", rpc="h:1"))
    assert good.read_text() == before


def test_a_list_on_one_line_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text('devices: [{name: a, target: x86, rpc: "h:1"}, {name: b, target: x86, rpc: "h:2"}]\n')
    before = path.read_text()
    for edit in (lambda: remove(path, "a"), lambda: add(path, Device(name="c", target="x86", rpc="h:3"))):
        with pytest.raises(InventoryError):
            edit()
    assert path.read_text() == before


def test_adding_makes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "fleet.yaml"
    add(path, Device(name="a", target="x86", rpc="h:1"))
    assert [d.name for d in Inventory.load(path).devices] == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text(alphabet="devics:-[]{}#&*!|>'\"\n x8", max_size=60))
def test_any_text_is_read_or_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        Inventory.load(path)
    except InventoryError as error:
        assert str(path) in error.message


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Home.find(environ={"FLEET_HOME": str(tmp_path / "f")})
    assert {everything.config, everything.data, everything.state} == {tmp_path / "f"}
    xdg = Home.find(environ={"XDG_DATA_HOME": str(tmp_path / "d"), "XDG_CACHE_HOME": "relative/ignored"})
    assert xdg.data == tmp_path / "d" / "fleet"
    assert xdg.cache == Path.home() / ".cache" / "fleet"
    monkeypatch.chdir(tmp_path)
    assert xdg.inventory() == xdg.config / "fleet.yaml"
    (tmp_path / "fleet.yaml").touch()
    assert xdg.inventory() == Path("fleet.yaml")
    assert xdg.inventory(tmp_path / "x.yaml") == tmp_path / "x.yaml"


def test_boards_behind_ssh_are_read(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("""\
devices:
  - {name: one, target: jetson, ssh: nvidia@10.0.0.7}
  - name: two
    target: ascend
    ssh: {to: rack-2, config: ssh_config, identity: ~/.ssh/fleet, known_hosts: /etc/known}
    agent: {home: ~/agent, command: [/opt/fleet/bin/fleet-agent, run, --target, ascend]}
    link: rpc+ssh
""")
    one, two = Inventory.load(path).devices
    assert (one.ssh, one.key, one.address, one.link) == ("nvidia@10.0.0.7", "", "", "")
    assert (two.ssh, two.link, two.agent_home) == ("rack-2", "rpc+ssh", "~/agent")
    assert two.ssh_config == str(tmp_path / "ssh_config")
    assert two.ssh_identity == str(Path.home() / ".ssh" / "fleet")
    assert two.ssh_known_hosts == "/etc/known"
    assert two.agent_command == ("/opt/fleet/bin/fleet-agent", "run", "--target", "ascend")


def test_boards_behind_ssh_are_written_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    boards = [
        Device(name="one", target="jetson", ssh="nvidia@10.0.0.7:2200"),
        Device(
            name="two",
            target="ascend",
            ssh="rack-2",
            ssh_identity="/keys/fleet key",
            ssh_known_hosts="/keys/known",
            agent_home="~/agent",
            agent_command=("env", "A='b c'", "fleet-agent", "run"),
            link="rpc+ssh",
        ),
        Device(name="three", target="x86", ssh="::1", link="ssh"),
    ]
    for board in boards:
        add(path, board)
    assert list(Inventory.load(path).devices) == boards
