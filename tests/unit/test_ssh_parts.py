"""What needs no server: destinations, known_hosts files, routes of ssh_config."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.inventory import Device
from controller.ssh.destination import Destination
from controller.ssh.known_hosts import HostKeys, files
from controller.ssh.route import Hop, route
from targets.base import FleetError


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("board", "board", "", 0),
        ("nvidia@10.0.0.7", "10.0.0.7", "nvidia", 0),
        ("10.0.0.7:2222", "10.0.0.7", "", 2222),
        ("me@lab.example.org:22", "lab.example.org", "me", 22),
        ("fe80::1%eth0", "fe80::1%eth0", "", 0),
        ("root@::1", "::1", "root", 0),
        ("root@[::1]:2200", "::1", "root", 2200),
        ("me@corp@board", "board", "me@corp", 0),
    ],
)
def test_destinations(text: str, host: str, user: str, port: int) -> None:
    assert Destination.parse(text) == Destination(host=host, user=user, port=port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "board:",
        "board:0",
        "board:70000",
        "a b",
        "-oProxyCommand=x",
        "me@-x",
        "-x@board",
        "a;b",
        "[::1",
        "x/y",
        "@h",
    ],
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        Destination.parse(text)
    assert caught.value.code == "bad-ssh"


@given(
    st.from_regex(r"[a-z_][a-z0-9_-]{0,10}", fullmatch=True) | st.just(""),
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}|[0-9a-f]{1,4}::[0-9a-f]{1,4}", fullmatch=True),
    st.integers(0, 65535),
)
def test_a_destination_is_written_as_it_is_read(user: str, host: str, port: int) -> None:
    destination = Destination(host=host, user=user, port=port)
    assert Destination.parse(str(destination)) == destination


@given(st.text(max_size=60))
def test_any_text_is_a_destination_or_refused(text: str) -> None:
    try:
        found = Destination.parse(text)
    except FleetError:
        return
    assert not found.host.startswith("-") and found.host.isprintable() and 0 <= found.port < 65536


# --- known_hosts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys() -> list[asyncssh.SSHKey]:
    return [asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(3)]


def line(name: str, key: asyncssh.SSHKey) -> str:
    return f"{name} {' '.join(key.export_public_key().decode().split()[:2])}\n"


def shown(path: Path, host: str, port: int, key: asyncssh.SSHKey, alias: str = "") -> tuple[bool, HostKeys]:
    """Whether a key is trusted for a server."""
    known = HostKeys([path], host, port, alias)
    known.shown = key
    return key in known.match(host, "", port)[0], known


def test_a_key_is_known_by_name_port_and_alias(tmp_path: Path, keys: list[asyncssh.SSHKey]) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(line("board", keys[0]) + line("[board]:2222", keys[1]) + line("rack", keys[2]))
    assert shown(path, "board", 22, keys[0])[0]
    assert shown(path, "BOARD", 22, keys[0])[0]
    assert shown(path, "board", 2222, keys[1])[0]
    assert not shown(path, "board", 2222, keys[0])[0]
    assert shown(path, "board", 2200, keys[0])[0]  # as OpenSSH: a host's key holds on ports that nothing is said of
    assert shown(path, "10.0.0.1", 2222, keys[2], alias="rack")[0]
    assert not shown(path, "other", 22, keys[0])[0]


def test_hashed_names_are_known(tmp_path: Path, keys: list[asyncssh.SSHKey]) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(line("board", keys[0]))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert "board" not in path.read_text()
    assert shown(path, "board", 22, keys[0])[0]
    assert not shown(path, "bord", 22, keys[0])[0]


def test_damaged_lines_and_missing_files_know_nobody(tmp_path: Path, keys: list[asyncssh.SSHKey]) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(
        b"board ssh-ed25519 AAAA\n\xff\xfe\n|1|x|y ssh-ed25519 z\n@what board x y\nboard\n"
        + line("board", keys[0]).encode()
    )
    assert shown(path, "board", 22, keys[0])[0]
    assert not shown(tmp_path / "none", "board", 22, keys[0])[0]


def test_a_refusal_shows_the_fingerprint_and_the_command_that_accepts(
    tmp_path: Path, keys: list[asyncssh.SSHKey]
) -> None:
    path = tmp_path / "known hosts"
    _, known = shown(path, "board", 2222, keys[0])
    error = known.refusal("", "SSH to b")
    assert error.code == "host-key" and keys[0].get_fingerprint() in error.message and "not known" in error.message
    command = error.hint.rpartition("to accept it: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert shown(path, "board", 2222, keys[0])[0]

    _, known = shown(path, "board", 2222, keys[1])
    error = known.refusal("", "SSH to b")
    assert "HAS CHANGED" in error.message
    assert keys[0].get_fingerprint() in error.message and keys[1].get_fingerprint() in error.message
    command = error.hint.rpartition("to accept it: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert shown(path, "board", 2222, keys[1])[0]
    assert not shown(path, "board", 2222, keys[0])[0]


def test_no_files_of_the_user_is_no_permission(tmp_path: Path) -> None:
    home, system = Path.home() / ".ssh", Path("/etc/ssh")
    assert files("", None, None)[0] == home / "known_hosts"
    assert files("", [], None) == [system / "ssh_known_hosts", system / "ssh_known_hosts2"]
    assert files("", [], []) == []
    assert files(str(tmp_path), [], []) == [tmp_path]
    assert not any(HostKeys([], "board", 22, "").match("board", "", None))


# --- Routes -------------------------------------------------------------------------------------


def hops(tmp_path: Path, config: str, to: str, *, target: str = "x86", **more: str) -> list[Hop]:
    path = tmp_path / "config"
    path.write_text(config)
    return asyncio.run(route(Device(name="b", target=target, ssh=to, ssh_config=str(path), **more)))  # type: ignore[arg-type]


def names(found: list[Hop]) -> list[str]:
    return [hop.name for hop in found]


def test_a_host_of_the_configuration(tmp_path: Path) -> None:
    config = "Host b\n  HostName 10.0.0.9\n  User nvidia\n  Port 2200\n"
    assert names(hops(tmp_path, config, "b")) == ["nvidia@10.0.0.9:2200"]
    assert names(hops(tmp_path, config, "root@b:22")) == ["root@10.0.0.9"]


def test_jump_hosts_come_first_each_with_what_is_said_of_it(tmp_path: Path) -> None:
    config = """\
Host b
  HostName 10.0.0.9
  User nvidia
  ProxyJump me@gate:2222,inner
Host inner
  HostName 10.0.0.1
  User ops
Host gate
  ProxyJump outer
Host outer
  HostName outer.example.org
  User out
"""
    assert names(hops(tmp_path, config, "b")) == [
        "out@outer.example.org",
        "me@gate:2222",
        "ops@10.0.0.1",
        "nvidia@10.0.0.9",
    ]


def test_a_jump_host_for_all_is_not_its_own(tmp_path: Path) -> None:
    config = "Host *\n  User u\n  ProxyJump gate\n"
    assert names(hops(tmp_path, config, "b")) == ["u@gate", "u@b"]


def test_jump_hosts_in_a_circle_are_refused(tmp_path: Path) -> None:
    config = "Host a\n  ProxyJump b\nHost b\n  ProxyJump c\nHost c\n  ProxyJump b\n"
    with pytest.raises(FleetError, match="more than 8 jump hosts") as caught:
        hops(tmp_path, config, "a")
    assert caught.value.code == "ssh-config"


def test_the_check_of_host_keys_cannot_be_switched_off(tmp_path: Path) -> None:
    config = "Host *\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking no\n"
    (hop,) = hops(tmp_path, config, "b")
    assert hop.options.known_hosts is not None
    assert not any(hop.options.known_hosts("b", "", None))


def test_nothing_of_ours_goes_to_the_board(tmp_path: Path) -> None:
    config = (
        "Host *\n  ForwardAgent yes\n  ForwardX11Trusted yes\n  SendEnv AWS_*\n  RemoteCommand id\n  RequestTTY force\n"
    )
    (hop,) = hops(tmp_path, config, "b")
    assert not hop.options.agent_forward_path and not hop.options.x11_forwarding
    assert not hop.options.password_auth and not hop.options.kbdint_auth


@pytest.mark.parametrize(
    ("target", "config", "first"),
    [
        ("jetson", "", b"aes128-gcm@openssh.com"),
        ("pynq", "", b"chacha20-poly1305@openssh.com"),
        ("jetson", "Ciphers aes256-ctr\n", b"aes256-ctr"),
    ],
)
def test_the_cipher_is_what_the_board_is_fast_at(tmp_path: Path, target: str, config: str, first: bytes) -> None:
    (hop,) = hops(tmp_path, f"Host *\n{config}", "b", target=target)
    assert hop.options.encryption_algs[0] == first


@pytest.mark.parametrize(
    ("config", "identity", "words"),
    [("Port many\n", "", "integer"), ("Host b\n", "/nowhere/id", "No such file")],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, config: str, identity: str, words: str) -> None:
    with pytest.raises(FleetError, match=words) as caught:
        hops(tmp_path, config, "b", ssh_identity=identity)
    assert caught.value.code == "ssh-config"


def test_a_configuration_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        asyncio.run(route(Device(name="b", target="x86", ssh="b", ssh_config=str(tmp_path / "none"))))
    assert caught.value.code == "ssh-config"
