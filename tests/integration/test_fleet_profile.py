"""Profiles through real agents: what they measure, whom they refuse, and an agent that is too old for them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from agent_client import REPOSITORY, Agent, Client, Refused, make_bundle, running_agent, wait_for
from cli_fixtures import Cli, boards
from fleet_fixtures import HeldLease, Yard, run, yard

from agent import protocol as p
from controller.options import ProfileOptions

__all__ = ["yard"]

QUICK = ProfileOptions(seconds=0.1)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    yield from boards(tmp_path_factory.mktemp("profile") / "home", 1)


def test_a_networks_operators_are_timed_against_the_machine(cli: Cli, tmp_path: Path) -> None:
    drawn = tmp_path / "net.svg"
    document = cli.good("profile", "shapes-classifier", "--device", "sim-1", "--seconds", "0.3", "-o", drawn)
    (report,) = document["profiles"]
    assert (report["device"], report["target"], report["simulated"]) == ("sim-1", "x86", True)
    assert report["model"] == "shapes-classifier" and len(report["bundle"]) == 64 and report["threads"] >= 1
    assert report["error"] == "" and report["queries"] >= 5
    # Any core of this century multiplies faster than one number a cycle, and slower than a rack of them.
    assert 1 < report["peak_gflops"] < 1e5 and 0.1 < report["memory_gbytes_per_second"] < 1e4
    operators = report["operators"]
    assert {
        "kernel",
        "operators",
        "output",
        "choice",
        "ms",
        "share",
        "gflops",
        "peak_share",
        "gbytes_per_second",
    } <= set(operators[0])
    convolutions = [one for one in operators if "nn.conv2d" in one["operators"]]
    assert len(convolutions) == 12 and all(one["choice"] and one["gflops"] > 0 for one in convolutions)
    # The network from the first layer to the last.
    assert convolutions[0]["output"] == [1, 16, 32, 32] and operators[-1]["output"] == [1, 12]
    assert all(one["ms"] > 0 for one in operators)
    assert sum(one["share"] for one in operators) <= 1 + 1e-9
    spent = sum(one["ms"] for one in operators)
    assert sum(one["share"] for one in operators) == pytest.approx(spent / (spent + report["between_ms"]))
    assert report["query_ms"] > 0
    assert all(one["peak_share"] == pytest.approx(one["gflops"] / report["peak_gflops"]) for one in operators)
    assert report["advice"].startswith("Work on ") or "go by in operators" in report["advice"]
    titles = [title.text or "" for title in ElementTree.parse(drawn).getroot().findall(".//{*}g/{*}title")]
    assert [title.partition(":")[0] for title in titles] == [one["kernel"] for one in operators]
    # It measured a bundle, and made no release of it.
    (status,) = cli.good("status", "--device", "sim-1")["devices"]
    assert status["releases"] == [] and status["lease"] == ""


def test_people_get_a_table_of_the_active_release(cli: Cli) -> None:
    cli.good("deploy", "shapes-classifier", "--device", "sim-1")
    called = cli("profile", "--device", "sim-1", "--top", "3", "--seconds", "0.1")
    assert called.code == 0, called.err
    assert "shapes-classifier on sim-1 (simulated)" in called.out and "measured peak" in called.out
    assert "conv2d + add" in called.out and "together" in called.out
    assert re.search(r"\b\d+ others\b", called.out)


def test_a_picture_is_an_svg(cli: Cli) -> None:
    called = cli("profile", "--device", "sim-1", "-o", "net.png", "--json")
    assert called.code == 2 and called.error["code"] == "usage"


# --- Who has none ---------------------------------------------------------------------------------


def test_a_target_without_operators_says_so_and_is_none_the_worse(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    archive, bundle = yard.made()
    fleet = yard.fleet()
    (report,) = run(fleet.profile(archive, [device], QUICK))
    assert "target 'numpy' has no profile" in report.error and "fleet bench" in report.error
    assert report.operators == [] and report.simulated
    status = yard.status(device)
    assert status.state == "idle" and status.lease is None
    (deployed,) = run(fleet.deploy(archive, [device]))
    assert deployed.status == "active" and deployed.bundle == bundle.id


def test_a_board_without_a_release_or_with_another_holder_says_why(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    (report,) = run(yard.fleet().profile(None, [device], QUICK))
    assert "no release" in report.error and "fleet deploy" in report.error
    with HeldLease(yard, device):
        (report,) = run(yard.fleet().profile(None, [device], ProfileOptions(lease_wait=0.0)))
    assert "somebody@else" in report.error


def test_an_agent_that_is_too_old_is_named(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same agent with the protocol of before: it knows neither the message nor its number."""
    old = tmp_path / "old"
    for package in ("agent", "targets"):
        shutil.copytree(REPOSITORY / package, old / package, ignore=shutil.ignore_patterns("__pycache__"))
    protocol = old / "agent" / "protocol.py"
    text = protocol.read_text()
    number, member = f"\nMINOR = {p.MINOR}\n", "    | Profile\n"
    assert text.count(number) == text.count(member) == 1
    protocol.write_text(text.replace(number, "\nMINOR = 0\n").replace(member, ""))
    monkeypatch.setenv("PYTHONPATH", str(old), prepend=":")
    yard.up(1)
    (device,) = yard.everything
    archive, _ = yard.made()
    fleet = yard.fleet()
    (report,) = run(fleet.profile(archive, [device], QUICK))
    assert "protocol 1.0" in report.error and "1.1" in report.error and "update the agent" in report.error
    assert yard.status(device).state == "idle"

    async def ask() -> str:
        async with fleet.session(device, lease=True) as session:
            with pytest.raises(Exception, match="profile") as raised:
                await session.connection.request(p.Profile(token=session.token), p.Profiled)
            return str(getattr(raised.value, "code", ""))

    # Asked all the same, it answers instead of falling silent.
    assert run(ask()) == "protocol"


# --- On the wire ----------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def refusal(client: Client, **asked: object) -> str:
    with pytest.raises(Refused) as raised:
        client.ask(p.Profile(**{"token": client.lease, **asked}), p.Profiled)  # type: ignore[arg-type]
    return raised.value.code


def test_what_is_asked_wrongly_is_refused(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle())
        assert refusal(client, token="no such") == "leased"
        assert refusal(client, slot="other") == "no-release"
        assert refusal(client, bundle="0" * 64) == "no-such-bundle"
        for seconds in (0.0, -1.0, 1e9, float("nan")):
            assert refusal(client, seconds=seconds) == "bad-spec"
        assert refusal(client) == "no-profile"
        assert client.status().state == "leased"


def test_a_profile_can_be_cancelled(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle(sleep=2.0))
        client.events.clear()
        number = client.send(p.Profile(token=client.lease))

        def warming() -> bool:
            got = client.receive(1.0)
            if got is not None:
                client.events.append(got[0])
            return any(isinstance(event, p.Stage) and event.stage == "warmup" for event in client.events)

        wait_for(warming, "it warms up")
        client.ask(p.Cancel(request=number), p.Done)
        with pytest.raises(Refused) as raised:
            client.reply(number)
        assert raised.value.code == "cancelled"
        assert client.status().state == "leased"
