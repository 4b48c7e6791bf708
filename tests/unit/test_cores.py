"""How many threads a process may start, and where: from the kernel's files as they look on different machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.base import FleetError
from targets.cores import Cores, cpu_list, usable


class Root:
    """A file system with the files that are looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def cpu(self, number: int, *, siblings: str = "", capacity: int = 0) -> None:
        folder = f"sys/devices/system/cpu/cpu{number}"
        self.write(f"{folder}/topology/thread_siblings_list", siblings or number)
        if capacity:
            self.write(f"{folder}/cpu_capacity", capacity)

    def usable(self, *allowed: int) -> Cores:
        return usable(self.root, allowed)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_a_board_takes_all_its_cores_and_the_first_of_them_last(root: Root) -> None:
    for cpu in range(4):
        root.cpu(cpu)
    cores = root.usable(0, 1, 2, 3)
    assert cores == Cores((3, 2, 1, 0), 4) and cores.default == cores.most == 4
    assert cores.pinned(3) == (3, 2, 1)


def test_only_what_the_affinity_allows(root: Root) -> None:
    for cpu in range(8):
        root.cpu(cpu)
    cores = root.usable(2, 5)
    assert cores.processors == (5, 2) and cores.default == cores.most == 2


def test_two_threads_of_one_core_count_once_but_may_be_asked_for(root: Root) -> None:
    for cpu in range(4):
        root.cpu(cpu, siblings=f"{cpu % 2},{cpu % 2 + 2}")
    cores = root.usable(0, 1, 2, 3)
    assert cores.default == 2 and cores.most == 4
    assert set(cores.pinned(2)) == {0, 1} and cores.threads(4) == 4
    # A sibling that the affinity leaves out does not count: then the other one has the core alone.
    assert root.usable(1, 2).default == 2


def test_small_cores_are_left_out_unless_asked_for(root: Root) -> None:
    for cpu in range(6):
        root.cpu(cpu, capacity=1024 if cpu >= 4 else 446)
    cores = root.usable(*range(6))
    assert cores.default == 2 and cores.pinned(2) == (5, 4) and cores.threads(6) == 6


def test_a_kernel_that_says_nothing(root: Root) -> None:
    assert root.usable(0, 1) == Cores((1, 0), 2)


@pytest.mark.parametrize(
    ("group", "files", "default", "most"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1, 2),
        ("0::/system.slice/agent.service", {"system.slice/agent.service/cpu.max": "300000 100000"}, 3, 3),
        # The tightest of a group and those above it.
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2, 3),
        ("0::/a", {"a/cpu.max": "max 100000"}, 4, 4),
        ("0::/a", {"a/cpu.max": "900000 100000"}, 4, 4),
        ("0::/a", {"a/cpu.max": "20000 100000"}, 1, 1),
        # The first version of control groups, on a host, and as a container sees it.
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": 200000, "cpu/a/cpu.cfs_period_us": 100000}, 2, 2),
        ("1:cpu:/docker/1f", {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 100000}, 1, 1),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 4, 4),
        ("2:memory:/a", {"memory/a/cpu.cfs_quota_us": 100000, "memory/a/cpu.cfs_period_us": 100000}, 4, 4),
        ("0::/a", {"a/cpu.max": "what is this"}, 4, 4),
    ],
)
def test_a_quota_bounds_the_threads_and_unpins_them(
    group: str, files: dict[str, str | int], default: int, most: int, root: Root
) -> None:
    root.write("proc/self/cgroup", group)
    for path, text in files.items():
        root.write(f"sys/fs/cgroup/{path}", text)
    cores = root.usable(0, 1, 2, 3)
    assert (cores.default, cores.most) == (default, most)
    # Which cores a group's time is spent on is the kernel's to choose: others run there too.
    assert bool(cores.pinned(default)) == (cores.quota is None) == (most == 4)


def test_more_threads_than_there_are_is_an_error() -> None:
    with pytest.raises(FleetError, match="3 threads are asked for, and models may use 2 processors here") as caught:
        Cores((1, 0), 2).threads(3)
    assert caught.value.code == "too-many-threads" and caught.value.hint
    with pytest.raises(FleetError, match=r"a quota of 1\.5"):
        Cores((1, 0), 2, quota=1.5).threads(3)
    assert Cores((1, 0), 2).threads(0) == 2 and Cores((1, 0), 2).lacking(2) == ""


def test_this_process() -> None:
    cores = usable()
    assert set(cores.processors) == os.sched_getaffinity(0) and 1 <= cores.default <= cores.most


@given(st.lists(st.integers(0, 200), min_size=1, unique=True))
def test_lists_of_processors(numbers: list[int]) -> None:
    assert cpu_list(",".join(map(str, numbers)) + "\n") == numbers
    first, last = min(numbers), max(numbers)
    assert cpu_list(f"{first}-{last}") == list(range(first, last + 1))
