"""The command line without devices: options, errors, exit codes, JSON, help, completion."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from controller.cli import errors, exits
from controller.cli.main import app, execute
from controller.cli.running import run
from controller.cli.session import build_options, pairs
from targets.base import FleetError

FLEET = Path(sys.executable).with_name("fleet")
HEAVY = ("numpy", "tvm", "torch", "sqlalchemy", "zmq", "PIL", "onnx", "scipy", "ruamel", "asyncio")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working directory of the test's own."""
    monkeypatch.setenv("FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLEET_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = execute(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def every_command() -> list[list[str]]:
    from typer.main import get_command

    def walk(command: object, path: list[str]) -> list[list[str]]:
        below = [walk(sub, [*path, name]) for name, sub in getattr(command, "commands", {}).items()]
        return [path, *(found for group in below for found in group)]

    return [path for path in walk(get_command(app), []) if path]


def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    commands = every_command()
    assert {"init", "devices", "sim", "build", "deploy", "rollback", "status", "bench", "run", "top", "results"} <= {
        path[0] for path in commands
    }
    for path in commands:
        code, out, err = called(capsys, *path, "--help")
        assert (code, err) == (0, "")
        assert "--json" in out
        assert "--inventory" in out
        assert "--debug" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom controller.cli.main import execute\n"
        "for command in ([], ['deploy'], ['bench'], ['results', 'export']): assert execute([*command, '--help']) == 0\n"
        f"print('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_devices_of_an_empty_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "devices", "--json")
    assert (code, json.loads(out), err) == (0, {"schema": 1, "devices": []}, "")
    code, out, _ = called(capsys, "devices")
    assert code == 0
    assert "fleet sim up" in out


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["no-such-command"], 2, "usage"),
        (["devices", "--no-such-option"], 2, "usage"),
        (["deploy", "shapes-classifier"], 2, "nothing-selected"),
        (["deploy", "shapes-classifier", "--all"], 3, "nothing-matched"),
        (["bench", "--all"], 3, "nothing-matched"),
        (["bench", "--all", "--batch", "1,x"], 2, "usage"),
        (["bench", "--all", "--percentile", "100"], 2, "usage"),
        (["bench", "net", "--ab", "a", "b", "--all"], 2, "usage"),
        (["devices", "--device", "nope"], 2, "unknown-device"),
        (["devices", "--target", "nope"], 2, "unknown-target"),
        (["devices", "--label", "room=lab"], 2, "unknown-label"),
        (["devices", "--label", "room"], 2, "usage"),
        (["devices", "--inventory", "nope.yaml"], 2, "no-inventory"),
        (["devices", "remove", "sim-1"], 2, "usage"),
        (["sim", "up", "--target", "nope"], 2, "unknown-target"),
        (["sim", "up", "--tracker", "nowhere"], 2, "usage"),
        (["sim", "up", "--count", "0"], 2, "usage"),
        (["sim", "down", "sim-1"], 2, "unknown-device"),
        (["build", "nope", "--target", "x86"], 2, "unknown-model"),
        (["build", "shapes-classifier", "--target", "nope"], 2, "unknown-target"),
        (["build", "shapes-classifier", "--target", "x86", "--option", "opt"], 2, "usage"),
        (["build", "net", "--target", "x86", "--target", "arm64", "-o", "a.fleet"], 2, "usage"),
        (["results", "show", "nope"], 2, "unknown-run"),
        (["results", "list", "--device", "nope"], 3, "nothing-matched"),
        (["results", "list", "--label", "a=b"], 2, "usage"),
        (["results", "list", "--verdict", "perhaps"], 2, "usage"),
        (["results", "export", "--format", "xls", "-o", "a"], 2, "usage"),
        (["logs", "-f"], 2, "usage"),
        (["keys", "show", "extra"], 2, "usage"),
        (["--device", "a", "keys", "show"], 2, "usage"),
    ],
)
def test_an_error_is_one_document_or_one_message(
    arguments: list[str], exit_code: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = called(capsys, *arguments, "--json")
    document = json.loads(out)
    assert (got, document["schema"], document["error"]["code"]) == (exit_code, 1, code)
    assert set(document["error"]) == {"code", "message", "hint"}
    assert document["error"]["message"]
    assert err == ""
    if "logs" in arguments:
        return
    got, out, err = called(capsys, *arguments)
    assert (got, out) == (exit_code, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_bad_inventory_names_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("devices:\n  - name: a\n    target: toaster\n    adress: tcp://h:1\n")
    code, _, err = called(capsys, "devices")
    assert code == 2
    assert "fleet.yaml:3" in err
    assert "fleet.yaml:4" in err
    assert "toaster" in err


def test_unreadable_models_are_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, content in (("a.onnx", b"junk"), ("b.pt2", b"PK junk"), ("c.txt", b"text")):
        (tmp_path / name).write_bytes(content)
        code, out, _ = called(capsys, "build", name, "--target", "x86", "--json")
        assert code == 2, out
        assert name in json.loads(out)["error"]["message"]


def test_init_is_valid_and_never_overwrites(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = called(capsys, "init", "--json")
    assert (code, json.loads(out)["inventory"]) == (0, str(tmp_path / "fleet.yaml"))
    written = (tmp_path / "fleet.yaml").read_text()
    assert "#" in written
    from targets.base import names

    assert all(f"target: {name}" in written for name in names())
    assert called(capsys, "devices")[0] == 0
    (tmp_path / "fleet.yaml").write_text("# mine\n")
    assert called(capsys, "init")[0] == 2
    assert (tmp_path / "fleet.yaml").read_text() == "# mine\n"
    assert called(capsys, "init", "--force")[0] == 0
    assert (tmp_path / "fleet.yaml").read_text() == written
    assert called(capsys, "init", "--inventory", str(tmp_path / "deep" / "er" / "b.yaml"))[0] == 0


def test_devices_are_added_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    key = "a" * 40
    added = ["devices", "add", "bench-1", "--target", "arm64", "--address", "tcp://127.0.0.1:9", "--key", key]
    code, _, err = called(capsys, *added, "--label", "room=lab", "--inventory", "fleet.yaml")
    assert (code, err) == (0, "")
    assert "bench-1" in Path("fleet.yaml").read_text()
    assert called(capsys, *added, "--inventory", "fleet.yaml")[0] == 2
    code, out, _ = called(capsys, "devices", "remove", "bench-1", "--json")
    assert (code, json.loads(out)["removed"]) == (0, ["bench-1"])
    assert json.loads(called(capsys, "devices", "--json")[1])["devices"] == []


def test_options_may_stand_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(called(capsys, "--json", "devices")[1]) == {"schema": 1, "devices": []}
    assert json.loads(called(capsys, "devices", "--json", "list")[1]) == {"schema": 1, "devices": []}
    code, out, _ = called(capsys, "--json", "--device", "nope", "devices")
    assert (code, json.loads(out)["error"]["code"]) == (2, "unknown-device")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys)
    assert (code, err) == (2, "")
    assert "deploy" in out


def test_keys_are_shown_but_never_secrets(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    _, shown, _ = called(capsys, "keys", "show", "--json")
    _, text, _ = called(capsys, "keys")
    _, trust, _ = called(capsys, "keys", "trust")
    secrets = [path.read_text().strip() for path in (home / "keys").glob("*.key")]
    assert len(secrets) == 2
    for secret in secrets:
        assert secret not in shown + text + trust
    keys = json.loads(shown)["keys"]
    assert keys["signing_public"] in trust
    assert keys["curve_public"] in text


def test_an_unexpected_error_is_short_and_its_traceback_logged(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.inventory_file.template", lambda: 1 / 0)
    code, out, err = called(capsys, "init")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: fleet failed unexpectedly: ZeroDivisionError: division by zero",
        f"  next: the traceback is in {home / 'debug.log'}",
    ]
    assert "Traceback" in (home / "debug.log").read_text()
    code, out, err = called(capsys, "init", "--json", "--debug")
    assert json.loads(out)["error"]["code"] == "internal"
    assert "Traceback" in err


def test_control_characters_of_others_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = FleetError("the device says \x1b[2J\x07boo\nsecond line", hint="\x1b]0;title\x07")
    assert errors.tell(error, []) == exits.FAILED
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert err.splitlines()[1] == "second line"


def test_a_missing_package_names_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.tell(ModuleNotFoundError("No module named 'torch'", name="torch"), []) == exits.USAGE
    assert "fleet-edge[torch]" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([FLEET, "keys", "show"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (process.returncode, process.stderr) == (exits.BROKEN_PIPE, "")


def test_pairs_and_options() -> None:
    assert pairs(["a=b", "c=d=e", "f="], "--label") == {"a": "b", "c": "d=e", "f": ""}
    assert build_options(["n=3", "x=0.5", "on=true", "cpu=generic"]) == {"n": 3, "x": 0.5, "on": True, "cpu": "generic"}
    assert build_options(["on=False"])["on"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_work_in_good_order(number: signal.Signals) -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("begun")
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            steps.append("given back")

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(work())
    assert steps == ["begun", "given back"]
    assert time.monotonic() - start < 10


def test_interrupts_have_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.tell(KeyboardInterrupt(), []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert errors.tell(typer.Abort(), ["--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"


def completions(line: str) -> list[str]:
    """What bash would be told for a command line that ends at the cursor."""
    words = line.split(" ")
    environ = {**os.environ, "_FLEET_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([FLEET], capture_output=True, text=True, timeout=60, env=environ)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_knows_the_fleet(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "devices:\n  - {name: alpha, target: arm64, rpc: 'h:1', labels: {room: lab}}\n"
        "  - {name: beta, target: x86, rpc: 'h:2'}\n"
    )
    assert completions("fleet devices --device ") == ["alpha", "beta"]
    assert completions("fleet deploy --device al") == ["alpha"]
    assert completions("fleet deploy --label ") == ["room=lab"]
    assert "x86" in completions("fleet bench --target ")
    assert "shapes-classifier" in completions("fleet deploy sh")
    assert "compare" in completions("fleet results c")
    (tmp_path / "fleet.yaml").write_text("devices: 7\n")
    assert completions("fleet devices --device ") == []


def test_completion_scripts_for_shells() -> None:
    for shell in ("bash", "zsh", "fish"):
        environ = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        done = subprocess.run(
            [FLEET, "--show-completion", shell], capture_output=True, text=True, timeout=60, env=environ
        )
        assert done.returncode == 0, done.stderr
        assert "_FLEET_COMPLETE" in done.stdout
