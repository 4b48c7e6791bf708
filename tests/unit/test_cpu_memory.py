"""Results share buffers only while they are not needed together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from targets.cpu.memory import Life, shared

LIVES = st.lists(
    st.builds(
        lambda size, first, length: Life(size, first, first + length),
        st.integers(1, 99),
        st.integers(0, 20),
        st.integers(0, 6),
    ),
    max_size=25,
)


def total(lives: list[Life], numbers: list[int]) -> int:
    return sum(max(life.size for life, n in zip(lives, numbers, strict=True) if n == number) for number in set(numbers))


@given(LIVES)
def test_no_two_that_are_needed_together_share(lives: list[Life]) -> None:
    numbers = shared(lives)
    for index, (life, number) in enumerate(zip(lives, numbers, strict=True)):
        for other, its in zip(lives[:index], numbers[:index], strict=True):
            assert number != its or other.last < life.first or other.first > life.last
    live = [sum(life.size for life in lives if life.first <= step <= life.last) for step in range(30)]
    assert max(live) <= total(lives, numbers) <= sum(life.size for life in lives)


def test_results_that_grow_and_then_shrink_need_the_two_largest_neighbours() -> None:
    sizes = [3, 5, 8, 20, 12, 6, 2]
    lives = [Life(size, step, step + 1) for step, size in enumerate(sizes)]
    assert total(lives, shared(lives)) == 20 + 12


def test_a_sum_is_written_over_what_it_adds_to() -> None:
    # Three residual blocks: the shortcut lives until the sum, which is written over it.
    lives = [Life(9, 0, 2)]
    for block in range(3):
        shortcut, step = len(lives) - 1, 1 + 2 * block
        lives += [Life(9, step, step + 1), Life(9, step + 1, step + 3, over=shortcut)]
    assert total(lives, shared(lives)) == 2 * 9
    # Somebody else still needs it: not over that one.
    lives[0] = Life(9, 0, 3)
    assert total(lives, shared(lives)) == 3 * 9


@given(LIVES, st.data())
def test_only_what_ends_there_is_written_over(lives: list[Life], data: st.DataObject) -> None:
    lives = [
        replace(life, over=data.draw(st.integers(-1, index - 1))) if index else life
        for index, life in enumerate(sorted(lives, key=lambda life: life.first))
    ]
    numbers = shared(lives)
    for index, life in enumerate(lives):
        for before, other in enumerate(lives[:index]):
            if numbers[index] == numbers[before]:
                ended = other.last < life.first or (life.over == before and other.last == life.first)
                assert ended or other.first > life.last
