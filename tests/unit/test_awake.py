"""Waiting with the processor busy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from targets.awake import wait_awake


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_lies_there_is_seen_at_once(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert wait_awake(pipe[0], 60)


def test_it_gives_up_in_time(pipe: tuple[int, int]) -> None:
    begin = time.monotonic()
    assert not wait_awake(pipe[0], 0.05)
    assert time.monotonic() - begin < 30


def test_one_processor_is_left_to_what_is_waited_for(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert not wait_awake(pipe[0], 1e9)


def test_the_processor_is_busy_until_something_comes(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    threading.Timer(0.2, os.write, (pipe[1], b"x")).start()
    before = time.thread_time()
    assert wait_awake(pipe[0], 60)
    assert time.thread_time() - before > 0.02
