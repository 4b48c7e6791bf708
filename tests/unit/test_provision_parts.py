"""What provisioning knows without a board: facts, checks, Ansible's inventory, what a service may do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.home import Home
from controller.inventory import Device
from controller.provision import board, hosts
from controller.provision.wheels import chosen, requirements
from targets.base import FleetError
from targets.keys import Keys

TEMPLATES = board.PLAYBOOKS / "roles" / "common" / "templates"
GOOD = {
    "look": "1",
    "machine": "aarch64",
    "python": "/usr/bin/python3 3.11 64 glibc-2.36 1",
    "free:/opt": "4000000",
    "running": "",
}


def test_this_machine_is_a_board() -> None:
    said = subprocess.run(["sh", board.LOOK, "/etc/passwd", "/etc", "/nowhere"], capture_output=True, text=True).stdout
    facts = board.parse(said)
    assert facts["path:/etc"].startswith("directory root:root 755")
    assert facts["path:/etc/passwd"].startswith("file root:root 644 ")
    assert "path:/nowhere" not in facts
    found = board.check(facts, "vta-sim")
    assert found.machine in board.MADE_FOR
    assert found.version >= (3, 10)


@pytest.mark.parametrize(
    ("change", "target", "code", "words"),
    [
        ({"machine": "x86_64"}, "arm64", "wrong-architecture", "is a x86_64, and target arm64 is for aarch64"),
        ({"machine": "riscv64"}, "vta-sim", "wrong-architecture", "is a riscv64"),
        # A system of 32 bits on a kernel of 64, as of a Raspberry Pi.
        ({"python": "/usr/bin/python3 3.11 32 glibc-2.36 1"}, "arm64", "wrong-architecture", "is a armv7l"),
        ({"python": "/usr/bin/python3 3.8 64 glibc-2.31 0"}, "arm64", "old-python", "3.8"),
        ({"python": ""}, "arm64", "old-python", "no Python"),
        ({"python": "/usr/bin/python3 3.11 64 - 1"}, "arm64", "wrong-architecture", "glibc"),
        ({"free:/opt": "1024"}, "arm64", "no-space", "1 MiB are free"),
    ],
)
def test_what_cannot_be_a_device_says_why(change: dict[str, str], target: str, code: str, words: str) -> None:
    with pytest.raises(FleetError, match=words) as caught:
        board.check({**GOOD, **change}, target)
    assert caught.value.code == code


def test_a_32_bit_system_on_a_64_bit_kernel_is_a_32_bit_board() -> None:
    found = board.check({**GOOD, "python": "/usr/bin/python3 3.11 32 glibc-2.36 1"}, "armv7")
    assert found.tag == "armv7l-cp311-glibc2.36"


@given(st.text(max_size=300))
def test_what_a_board_says_is_believed_only_whole(text: str) -> None:
    try:
        facts = board.parse(text)
    except FleetError as error:
        assert error.code == "no-shell"
        return
    assert facts["look"] == "1"


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=60)))
def test_facts_of_any_kind_give_a_board_or_a_word(change: dict[str, str]) -> None:
    try:
        found = board.check({**GOOD, **change}, "arm64")
    except FleetError as error:
        assert error.code in ("wrong-architecture", "old-python", "no-space")
    else:
        assert found.python.startswith("/")


def test_wheels_are_chosen_for_the_board_and_no_newer_library() -> None:
    words = chosen(board.Board("aarch64", "/usr/bin/python3", (3, 10), (2, 31)))
    platforms = [word for word in words if word.startswith("manylinux")]
    assert platforms[0] == "manylinux_2_31_aarch64"
    assert "manylinux_2_17_aarch64" in platforms
    assert "manylinux_2_32_aarch64" not in platforms
    assert words[words.index("--python-version") + 1] == "3.10"


def test_an_agent_needs_what_its_distribution_says() -> None:
    assert {one.lower() for one in requirements()} >= {"numpy", "pyzmq", "msgspec", "psutil", "zstandard"}


def test_the_inventory_says_how_a_board_is_reached(tmp_path: Path) -> None:
    devices = [
        Device(
            name="kitchen",
            target="arm64",
            ssh="pi@192.0.2.7:2222",
            ssh_identity="/keys/lab",
            ssh_known_hosts="/keys/known",
            labels={"room": "lab-1", "room-1": "lab"},
            tracker="192.0.2.1:9190",
            rpc_key="kitchen",
        ),
        Device(name="root-1", target="vta-sim", ssh="root@192.0.2.8", rpc="192.0.2.8:9090", link=""),
        Device(name="socket", target="x86", address="tcp://192.0.2.9:7700", key="k" * 40),
        Device(name="sim-x86-1", target="x86", simulated=True, ssh="root@127.0.0.1:4000", folder="/tmp"),
    ]
    keys = Keys(tmp_path / "keys")
    document = hosts.dynamic(devices, keys, Home.find(tmp_path))
    assert document["all"]["hosts"] == ["kitchen", "root-1"]
    assert document["target_arm64"]["hosts"] == ["kitchen"]
    assert document["label_room_lab_1"]["hosts"] == ["kitchen"]
    assert all(name.isidentifier() for name in document["all"]["children"])
    kitchen = document["_meta"]["hostvars"]["kitchen"]
    assert (kitchen["ansible_host"], kitchen["ansible_port"], kitchen["ansible_user"]) == ("192.0.2.7", 2222, "pi")
    assert kitchen["ansible_ssh_private_key_file"] == "/keys/lab"
    assert "StrictHostKeyChecking=yes" in kitchen["ansible_ssh_common_args"]
    assert "UserKnownHostsFile=/keys/known" in kitchen["ansible_ssh_common_args"]
    assert kitchen["fleet_tracker"] == "192.0.2.1:9190"
    assert kitchen["fleet_listen"] == "tcp://127.0.0.1:0"
    assert kitchen["fleet_open_ports"] == []
    root = document["_meta"]["hostvars"]["root-1"]
    assert root["ansible_become"] is False
    assert (root["fleet_rpc_host"], root["fleet_rpc_port"], root["fleet_open_ports"]) == ("0.0.0.0", "9090", [9090])
    # Secrets stay.
    assert keys.curve_secret.decode() not in json.dumps(document)
    static = hosts.static(document, {"kitchen": {"fleet_package": {"id": "x"}}})
    assert static["all"]["hosts"]["kitchen"]["fleet_package"] == {"id": "x"}


def unit(hardware: str) -> str:
    """The unit as the role renders it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    variables = {
        "common_hardware": hardware,
        "fleet_home": "/var/lib/fleet/agent",
        "fleet_name": "board-1",
        "fleet_target": "x86",
        "fleet_listen": "tcp://127.0.0.1:0",
        "fleet_rpc_host": "127.0.0.1",
        "fleet_rpc_port": "0",
        "fleet_rpc_key": "",
        "fleet_tracker": "",
    }
    environment.globals["lookup"] = lambda kind, name: environment.get_template(name).render(variables)
    return environment.get_template("fleet-agent.service.j2").render(variables)


needs_systemd_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze (systemd)")


@needs_systemd_analyze
@pytest.mark.parametrize("hardware", ["none", "devices", "root"])
def test_the_unit_is_one(tmp_path: Path, hardware: str) -> None:
    # The programs must be there for systemd to be content.
    root = tmp_path / "root"
    for name in ("opt/fleet/agent/bin/fleet-agent", "bin/mkdir"):
        program = root / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    place = root / "etc/systemd/system"
    place.mkdir(parents=True)
    for name in ("network-online.target", "time-sync.target", "sysinit.target", "basic.target", "shutdown.target"):
        (place / name).write_text("[Unit]\nDescription=a\n")
    for name in ("system.slice", "-.slice"):
        (place / name).write_text("[Unit]\nDescription=a\n")
    (place / "fleet-agent.service").write_text(unit(hardware))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", "fleet-agent.service"],
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "fleet-agent" in line]
    assert not said, done.stderr
    assert done.returncode == 0, done.stderr


@needs_systemd_analyze
@pytest.mark.parametrize(("hardware", "most"), [("none", 2.0), ("devices", 3.5), ("root", 8.0)])
def test_the_unit_leaves_the_agent_little(tmp_path: Path, hardware: str, most: float) -> None:
    """systemd's own measure of how much of the system a service may reach: 0 is nothing, 10 all of it."""
    path = tmp_path / "fleet-agent.service"
    path.write_text(unit(hardware))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most * 10:.0f}", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-600:] + done.stderr
