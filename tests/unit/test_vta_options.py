"""Build options of the targets with VTA: what they default to, what is refused, and what a simulated board changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.inventory import Inventory
from targets import base
from targets.base import FleetError, Option
from targets.cpu.machine import machine
from targets.pynq import PYNQ, Ultra96
from targets.vta import boards
from targets.vta.host import VTAHost
from targets.vta.options import resolve
from targets.vta.target import VTASim


@pytest.mark.parametrize(
    ("target", "uname", "identity"),
    [
        ("pynq", "armv7l", "1x16_i8w8a32_15_15_18_17@0.0.2"),
        ("ultra96", "aarch64", "1x16_i8w8a32_15_15_18_17@0.0.1"),
        ("vta-sim", machine(), "1x16_i8w8a32_15_15_18_17@0.0.2"),
    ],
)
def test_the_targets_and_their_defaults(target: str, uname: str, identity: str) -> None:
    found = base.find(target)
    assert found.name == target and found.description
    assert isinstance(found, base.SimulatedTarget) and found.only_simulated == (target == "vta-sim")
    host = found.host()
    assert isinstance(host, base.QuantisingHalf) and isinstance(host, base.FetchingHalf)
    assert not isinstance(host, base.HostHalf)
    toolchain = host.toolchain({})
    assert (toolchain["machine"], toolchain["vta"]) == (uname, identity)
    assert isinstance(found.simulated_device(), base.DeviceHalf)
    assert base.is_simulator(target) == (target == "vta-sim")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"speed": 3}, "bad-option", "no option 'speed'"),
        ({"dense": 1}, "bad-option", "'dense' must be a bool"),
        ({"batch": True}, "bad-option", "'batch' must be a int"),
        ({"batch": 5000}, "bad-option", "between 1 and 1024"),
        ({"activations": "median"}, "bad-option", "mse or minmax"),
        ({"weights": "channel"}, "bad-option", "tensor or block"),
        ({"pools": "max_pool2d"}, "bad-option", "two operators"),
        ({"machine": "vax"}, "bad-option", "one of"),
        ({"mcpu": "x86-64-v2"}, "bad-option", "no processor"),
        ({"config": "2x2"}, "bad-vta-config", "2x2"),
        ({"hw_ver": "7"}, "bad-vta-config", "HW_VER"),
        ({"config": "1x16_i8w8a32_15_15_18_17@0.0.1", "hw_ver": "0.0.2"}, "bad-option", "both"),
    ],
)
def test_options_that_are_refused(options: dict[str, Option], code: str, said: str) -> None:
    with pytest.raises(FleetError) as caught:
        resolve(options, boards.find("pynq"))
    assert caught.value.code == code
    assert said.lower() in f"{caught.value.message} {caught.value.hint}".lower()


def test_options_that_are_taken(tmp_path: Path) -> None:
    chosen = resolve(
        {"pools": "max_pool2d, mean", "weights": "block", "batch": 4, "config": "4x8_i8w8a32_15_16_16_18"},
        boards.find("pynq"),
    )
    assert chosen.pools == ("max_pool2d", "mean") and chosen.weights == "block" and chosen.batch == 4
    assert chosen.config.identity == "4x8_i8w8a32_15_16_16_18@0.0.2"
    file = tmp_path / "own.json"
    file.write_text('{"HW_VER": "0.0.1", "LOG_WGT_BUFF_SIZE": 17}')
    assert resolve({"config": str(file)}, boards.find("pynq")).config.identity == "1x16_i8w8a32_15_15_17_17@0.0.1"
    with pytest.raises(FleetError, match="hw_ver"):
        resolve({"config": str(file), "hw_ver": "0.0.2"}, boards.find("pynq"))


def test_a_simulated_board_is_built_for_this_machine() -> None:
    real: dict[str, Option] = {"mcpu": "cortex-a9", "bitstream": "some.bit", "batch": 2}
    assert PYNQ().simulated_options(real) == {"batch": 2, "machine": machine()}
    assert Ultra96().simulated_options({"mcpu": "host"}) == {"mcpu": "host", "machine": machine()}
    # Who names a machine knows where the simulation runs.
    assert VTASim().simulated_options({"machine": "aarch64", "mcpu": "generic"}) == {
        "machine": "aarch64",
        "mcpu": "generic",
    }
    assert PYNQ().host().toolchain(PYNQ().simulated_options(real))["machine"] == machine()


def test_a_bitstream_is_for_the_real_board_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "not.bit"
    file.write_bytes(b"<html>")
    host = VTAHost(boards.find("pynq"))
    with pytest.raises(FleetError) as caught:
        host.toolchain({"bitstream": str(file)})
    assert caught.value.code == "bad-bitstream"
    with pytest.raises(FleetError) as caught:
        host.toolchain({"bitstream": str(file), "machine": "x86_64"})
    assert caught.value.code == "bad-option"
    assert host.with_fetched({"batch": 1}, tmp_path) == {"batch": 1}


def test_the_inventory_names_files_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "fleet.yaml").write_text(
        "assign:\n"
        "  - model: resnet18\n"
        "    target: pynq\n"
        "    options: {calibration: photos, config: 1x16_i8w8a32_15_15_18_17, mcpu: photos}\n"
    )
    (assigned,) = Inventory.load(tmp_path / "fleet.yaml").assignments
    assert assigned.options == {
        "calibration": str(tmp_path / "photos"),
        "config": "1x16_i8w8a32_15_15_18_17",
        "mcpu": "photos",
    }
