"""Chunk sizes follow the link."""

from hypothesis import given
from hypothesis import strategies as st

from controller.pace import Pace
from targets.defaults import CHUNK_FIRST, CHUNK_LARGEST, CHUNK_QUICK, CHUNK_SLOW, CHUNK_SMALLEST


def test_a_quick_link_gets_the_largest_chunks() -> None:
    pace = Pace()
    for _ in range(10):
        pace.acknowledged(pace.size, CHUNK_QUICK / 2)
    assert pace.size == CHUNK_LARGEST


def test_a_slow_link_gets_the_smallest_chunks() -> None:
    pace = Pace()
    for _ in range(10):
        pace.acknowledged(pace.size, CHUNK_SLOW * 2)
    assert pace.size == CHUNK_SMALLEST


def test_the_end_of_a_blob_tells_nothing_about_the_link() -> None:
    pace = Pace()
    pace.acknowledged(CHUNK_FIRST - 1, 0.0)
    assert pace.size == CHUNK_FIRST


@given(st.floats(min_value=20e3, max_value=1e9), st.integers(min_value=1, max_value=8))
def test_on_a_steady_link_it_settles(bytes_per_second: float, window: int) -> None:
    pace = Pace()
    sizes = []
    for _ in range(40):
        sizes.append(pace.size)
        pace.acknowledged(pace.size, window * pace.size / bytes_per_second)
    assert len(set(sizes[-10:])) == 1
