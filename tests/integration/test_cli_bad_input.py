"""Bad input of every kind: one clear message, the right exit code, and nothing lost that was there before."""

import json
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fixtures import Cli, boards

NET = "shapes-classifier"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One good board with a release, and a bundle in `good.fleet`."""
    for cli in boards(tmp_path_factory.mktemp("bad") / "home", 1):
        cli.good("build", NET, "--target", "x86", "-o", "good.fleet")
        cli.good("deploy", "good.fleet", "--all")
        yield cli


def release(cli: Cli, device: str = "sim-1") -> str:
    (found,) = cli.good("devices", "--device", device)["devices"]
    return str(found["release"])


def tampered(cli: Cli, name: str, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of the good bundle with its members changed."""
    with zipfile.ZipFile(cli.cwd / "good.fleet") as good:
        members = {info.filename: good.read(info) for info in good.infolist()}
    change(members)
    path = cli.cwd / name
    with zipfile.ZipFile(path, "w") as bad:
        for member, data in members.items():
            bad.writestr(member, data)
    return path


def wrong_digest(members: dict[str, bytes]) -> None:
    name = max((n for n in members if n.startswith("blobs/")), key=lambda n: len(members[n]))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def wrong_signature(members: dict[str, bytes]) -> None:
    document = json.loads(members["manifest.json"])
    document["options"]["changed"] = 1
    members["manifest.json"] = json.dumps(document).encode()


def leaving_path(members: dict[str, bytes]) -> None:
    document = json.loads(members["manifest.json"])
    document["files"][0]["path"] = "../outside"
    members["manifest.json"] = json.dumps(document).encode()


def missing_blob(members: dict[str, bytes]) -> None:
    del members[next(n for n in members if n.startswith("blobs/"))]


@pytest.mark.parametrize("change", [wrong_digest, wrong_signature, leaving_path, missing_blob])
def test_a_bundle_that_was_tampered_with(cli: Cli, change: Callable[[dict[str, bytes]], None]) -> None:
    before = release(cli)
    path = tampered(cli, f"{change.__name__}.fleet", change)
    called = cli("deploy", path, "--all", "--json")
    if "error" in called.document:
        assert called.code == 2
        assert called.error["message"]
    else:
        assert called.code == 1
        assert called.document["results"][0]["status"] == "failed"
        assert called.document["results"][0]["reason"]
    assert release(cli) == before
    assert not (cli.cwd / "outside").exists()


def test_a_file_that_is_no_bundle(cli: Cli) -> None:
    (cli.cwd / "junk.fleet").write_bytes(b"junk")
    called = cli("deploy", "junk.fleet", "--all", "--json")
    assert (called.code, called.error["code"]) == (2, "bad-bundle")
    assert cli("deploy", "no-such.fleet", "--all").code == 2


def test_a_picture_that_is_not_one(cli: Cli) -> None:
    (cli.cwd / "not.png").write_text("not a picture")
    called = cli("run", NET, "not.png", "--all", "--json")
    assert (called.code, called.error["code"]) == (2, "bad-picture")
    assert "not.png" in called.error["message"]
    assert cli("run", NET, "missing.png").code == 2


def test_a_model_that_is_nowhere(cli: Cli) -> None:
    (cli.cwd / "p.ppm").write_bytes(b"P6 2 2 255\n" + bytes(12))
    assert cli("run", "no-such-model", "p.ppm").code == 3
    assert cli("run", "no-such-model", "p.ppm", "--device", "sim-1").code == 1
    assert cli("deploy", "no-such-model", "--all").code == 2
    assert cli("bench", "no-such-model", "--all").code == 2


def test_rolling_back_what_has_no_past(cli: Cli) -> None:
    before = release(cli)
    called = cli("rollback", "--all", "--json")
    assert called.code == 1
    assert "no release before" in called.document["results"][0]["reason"]
    assert release(cli) == before


def test_an_unreachable_device_and_a_wrong_key(cli: Cli) -> None:
    (good,) = cli.good("devices", "--device", "sim-1")["devices"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        (cli.cwd / "some.yaml").write_text(
            "devices:\n"
            f"  - {{name: away, target: x86, address: 'tcp://127.0.0.1:{port}', key: '{'a' * 40}'}}\n"
            f"  - {{name: other, target: x86, address: '{good['address']}', key: '{wrong_key()}'}}\n"
        )
        options = ["--inventory", "some.yaml", "--device", "away", "--device", "other"]
        listed = cli.good("devices", *options)["devices"]
        assert [(d["name"], d["state"]) for d in listed] == [("away", "unreachable"), ("other", "wrong-key")]
        assert all(d["reason"] for d in listed)
        assert cli("devices", "check", *options).code == 1
        assert cli("status", *options).code == 1
        deployed = cli("deploy", "good.fleet", *options, "--json")
        assert deployed.code == 1
        assert [r["status"] for r in deployed.document["results"]] == ["failed", "failed"]
        benched = cli("bench", *options, "--json")
        assert benched.code == 1
        assert [(r["verdict"], r["failed"]) for r in benched.document["runs"]] == [("INVALID", True)] * 2


def wrong_key() -> str:
    import zmq

    return bytes(zmq.curve_keypair()[0]).decode()


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("disk-full", "failed", ""),
        ("wrong-result", "failed", "golden"),
        ("crash", "failed", "golden"),
    ],
)
def test_boards_with_faults_keep_what_they_had(cli: Cli, fault: str, status: str, words: str) -> None:
    (board,) = cli.good("sim", "up", "--fault", fault)["boards"]
    try:
        called = cli("deploy", "good.fleet", "--device", board["name"], "--json")
        assert called.code == 1
        (report,) = called.document["results"]
        assert report["status"] == status
        assert report["reason"]
        assert words in report["reason"]
        assert release(cli, board["name"]) == ""
    finally:
        cli.good("sim", "down", board["name"])


def test_a_latency_budget_that_is_missed(cli: Cli) -> None:
    before = release(cli)
    called = cli("deploy", NET, "--option", "batch=2", "--latency-budget", "0.000001", "--all", "--json")
    assert called.code == 1
    (report,) = called.document["results"]
    assert report["status"] == "rolled-back"
    assert "ms" in report["reason"]
    assert release(cli) == before


def test_a_fault_that_does_not_exist(cli: Cli) -> None:
    called = cli("sim", "up", "--fault", "gremlins", "--json")
    assert called.code != 0
    assert "gremlins" in called.error["message"]
    assert [board["name"] for board in cli.good("sim", "status")["boards"]] == ["sim-1"]
