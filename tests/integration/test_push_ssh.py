"""Pushes over SSH: files into the agent's store by SFTP, cut and gone on with, and what is wrong with the board."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import ssh_fixtures
from agent_client import Agent, Refused, running_agent
from ssh_fixtures import Server, needs_sshd, sshd

from agent import protocol as p
from benchmarks.ssh import bundle_of
from controller.events import Event, Message, Progress, ignore
from controller.inventory import Device
from controller.prepare import Bundle
from controller.push import Traffic, push
from controller.session import CUT, Session
from targets.base import FleetError
from targets.keys import Keys
from targets.waiting import within

__all__ = ["sshd"]
pytestmark = needs_sshd
T = TypeVar("T")


@dataclass
class Board:
    """An agent behind an SSH server, and a controller's keys."""

    agent: Agent
    server: Server
    root: Path

    def __post_init__(self) -> None:
        keys, home = Keys(self.root / "keys"), self.agent.home
        (home.authorized / "controller.pub").write_bytes(keys.curve_public)
        (home.trusted / "controller.pub").write_text(keys.signing_public)

    @property
    def device(self) -> Device:
        home = str(self.agent.home.root)
        return self.server.device(target="numpy", agent_home=home, link="ssh")

    def session(self) -> Session:
        return Session(self.device, Keys(self.root / "keys"), holder="test", lease=True, lease_wait=30, listener=ignore)

    def run(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async def in_session() -> T:
            async with self.session() as opened:
                assert opened.carrier == "ssh"
                return await work(opened)

        return asyncio.run(within(90, in_session()))

    def push(self, bundle: Bundle, listener: Callable[[Event], None] = ignore) -> Traffic:
        traffic = Traffic()
        self.run(lambda opened: push(opened, bundle, traffic, listener))
        return traffic

    @property
    def incoming(self) -> Path:
        return self.agent.home.store / "incoming"

    def stored(self, data: bytes) -> bool:
        digest = hashlib.sha256(data).hexdigest()
        path = self.agent.home.store / "blobs" / digest[:2] / digest
        return path.is_file() and path.read_bytes() == data and not list(self.incoming.iterdir())


@pytest.fixture
def board(tmp_path: Path, sshd: Server) -> Iterator[Board]:
    with running_agent(tmp_path) as agent:
        yield Board(agent, sshd, tmp_path)


def test_large_blobs_go_as_files_small_ones_as_messages_and_nothing_twice(board: Board, tmp_path: Path) -> None:
    large = [os.urandom(size) for size in (7_000_000, 5_000_000, 300_000, 200_001, 131_072)]
    small = [os.urandom(10), b"", os.urandom(100_000)]
    bundle = bundle_of(tmp_path, *large, *small)
    told: list[Progress] = []
    first = board.push(bundle, lambda event: told.append(event) if isinstance(event, Progress) else None)
    assert first.sent == first.lacking == first.total == sum(map(len, large + small))
    assert all(board.stored(data) for data in large + small)
    assert told[-1].share == 1 and told[-1].bytes_done == first.total
    assert [event.bytes_done for event in told] == sorted(event.bytes_done for event in told)
    second = board.push(bundle)
    assert (second.sent, second.on_wire, second.skipped) == (0, 0, first.total)


def cut_when(
    bundle: Bundle, traffic: Traffic, at: int, cut: Callable[[], None]
) -> Callable[[Session], Awaitable[FleetError]]:
    """A push that is cut after ``at`` bytes; what it failed with."""

    async def work(opened: Session) -> FleetError:
        def watch(event: Event) -> None:
            if isinstance(event, Progress) and event.bytes_done >= at and not done:
                done.append(True)
                cut()

        done: list[bool] = []
        with pytest.raises(FleetError) as raised:
            await push(opened, bundle, traffic, watch)
        assert done
        return raised.value

    return work


def test_a_push_that_is_cut_goes_on_where_it_was(board: Board, tmp_path: Path) -> None:
    data = os.urandom(30_000_000)
    bundle, traffic = bundle_of(tmp_path, data), Traffic()

    async def work(opened: Session) -> tuple[FleetError, int]:
        error = await cut_when(bundle, traffic, 4_000_000, board.server.cut)(opened)
        before = traffic.on_wire
        assert 0 < before < len(data)
        await opened.restore()
        await push(opened, bundle, traffic, ignore)
        return error, traffic.on_wire - before

    error, again = board.run(work)
    assert error.code in CUT
    # What the dead connection's server had not written by then comes once more.
    assert again <= len(data) - 3_000_000
    assert traffic.sent == len(data)
    assert board.stored(data)


def test_an_agent_that_dies_in_the_middle_is_started_and_the_push_goes_on(board: Board, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    bundle, traffic = bundle_of(tmp_path, data), Traffic()

    async def work(opened: Session) -> FleetError:
        return await cut_when(bundle, traffic, 2_000_000, board.agent.kill)(opened)

    async def until_cut() -> FleetError:
        opened = board.session()
        await opened.__aenter__()
        try:
            return await work(opened)
        finally:
            with contextlib.suppress(FleetError):
                await opened.__aexit__(None, None, None)

    error = asyncio.run(within(90, until_cut()))
    assert error.code in CUT
    held = max((path.stat().st_size for path in board.incoming.iterdir()), default=0)
    board.agent.start()
    resumed = board.push(bundle)
    assert resumed.sent == len(data) - held
    assert board.stored(data)


def test_what_lay_there_and_is_not_the_blob_is_sent_anew(board: Board, tmp_path: Path) -> None:
    """After a power cut a file may be as long as it should be and hold zeros."""
    data = os.urandom(3_000_000)
    bundle = bundle_of(tmp_path, data)
    (board.incoming / hashlib.sha256(data).hexdigest()).write_bytes(bytes(1_000_000))
    traffic = board.push(bundle)
    assert board.stored(data)
    assert traffic.sent == 2_000_000 + 3_000_000


def test_a_link_in_the_blob_s_place_is_not_written_through(board: Board, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (board.incoming / hashlib.sha256(data).hexdigest()).symlink_to(victim)
    board.push(bundle_of(tmp_path, data))
    assert victim.read_bytes() == b"precious"
    assert board.stored(data)


def test_rubbish_in_the_folder_hinders_nothing(board: Board, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    (board.incoming / digest).write_bytes(os.urandom(4_000_000))
    (board.incoming / "some file").write_bytes(b"x")
    (board.incoming / "some folder").mkdir()
    board.push(bundle_of(tmp_path, data))
    path = board.agent.home.store / "blobs" / digest[:2] / digest
    assert path.read_bytes() == data


def test_without_sftp_everything_goes_as_messages(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.server.kill()
    monkeypatch.setattr(ssh_fixtures, "SFTP_SERVER", "/bin/false")
    board.server.start()
    data = os.urandom(3_000_000)
    told: list[Event] = []
    assert board.push(bundle_of(tmp_path, data), told.append).sent == len(data)
    assert any(isinstance(event, Message) and "as messages" in event.text for event in told)
    assert board.stored(data)


def test_an_older_agent_gets_messages(board: Board, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    bundle, traffic = bundle_of(tmp_path, data), Traffic()

    async def work(opened: Session) -> None:
        opened.connection.welcome.minor = 1
        watcher = asyncio.create_task(push(opened, bundle, traffic, ignore))
        while not watcher.done():
            assert not list(board.incoming.iterdir())
            await asyncio.sleep(0)
        await watcher

    board.run(work)
    assert traffic.sent == len(data)
    assert board.stored(data)


def test_what_began_as_messages_goes_on_so(board: Board, tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    bundle, traffic = bundle_of(tmp_path, data), Traffic()
    with board.agent.session(lease=True) as client:
        piece = p.PutChunk(
            token=client.lease, sha256=bundle.manifest.files[0].sha256, offset=0, length=1_000_000, total=len(data)
        )
        client.ask(piece, p.ChunkStored, data[:1_000_000])
        client.ask(p.ReleaseLease(token=client.lease), p.Done)
    board.run(lambda opened: push(opened, bundle, traffic, ignore))
    assert traffic.sent == 5_000_000
    assert board.stored(data)


def test_files_are_taken_in_for_the_holder_of_the_lease_only(board: Board) -> None:
    data = os.urandom(1_000)
    digest = hashlib.sha256(data).hexdigest()
    (board.incoming / digest).write_bytes(data)
    with board.agent.session() as client:
        with pytest.raises(Refused) as refused:
            client.ask(p.ImportBlob(token="guessed", sha256=digest, total=len(data)), p.ChunkStored)
        assert refused.value.code == "no-lease"
        client.acquire()
        stored = client.ask(p.ImportBlob(token=client.lease, sha256=digest, total=len(data)), p.ChunkStored)
    assert stored.complete and board.stored(data)


def test_a_quota_is_respected_before_a_byte_travels(tmp_path: Path, sshd: Server) -> None:
    with running_agent(tmp_path, "--quota", "5000000") as agent:
        board = Board(agent, sshd, tmp_path)
        kept = os.urandom(2_000_000)
        board.push(bundle_of(tmp_path, kept))
        with pytest.raises(FleetError, match="no room") as raised:
            board.push(bundle_of(tmp_path, os.urandom(4_000_000)))
        assert raised.value.code == "disk-full"
        assert board.stored(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_gets_full_in_the_middle(tmp_path: Path, sshd: Server) -> None:
    disk = tmp_path / "board"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], check=True)
    try:
        with running_agent(tmp_path) as agent:
            board, data = Board(agent, sshd, tmp_path), os.urandom(40_000_000)
            bundle, traffic = bundle_of(tmp_path, data), Traffic()
            hog = disk / "hog"

            def fill() -> None:
                # Unbuffered: what did not fit would be tried again when the file is closed.
                with hog.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(1 << 20))

            error = board.run(cut_when(bundle, traffic, 4_000_000, fill))
            assert error.code == "disk-full", error
            # The board has its last bytes back.
            assert not list(board.incoming.iterdir())
            hog.unlink()
            assert board.push(bundle).sent == len(data)
            assert board.stored(data)
    finally:
        subprocess.run(["umount", disk], check=True)
