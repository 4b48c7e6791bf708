"""What the CPU benchmark divides by: operations and live bytes of networks small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from benchmarks.cpu_counts import count, live_bytes  # noqa: E402

#: Bytes of a 1×8×10×10 tensor of floats, which most values here are.
VALUE = 8 * 10 * 10 * 4


def exported(network: nn.Module, *shape: int) -> tuple[Any, Any]:
    given = torch.zeros(*shape)
    return torch.export.export(network.eval(), (given,)), given


def live(network: nn.Module, *shape: int, itemsize: int = 0) -> int:
    return live_bytes(exported(network, *shape)[0].run_decompositions(), itemsize)


def test_operations_are_two_for_each_multiply_accumulate() -> None:
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(16 * 100, 7))
    program, given = exported(network, 1, 8, 10, 10)
    counts = count(program, [given])
    assert counts.flop == 2 * (16 * 100 * 4 * 9 + 1600 * 7)
    assert counts.weight_bytes == 4 * (16 * 4 * 9 + 16 + 1600 * 7 + 7)
    assert count(program, [given], itemsize=1).weight_bytes == counts.weight_bytes // 4


def test_a_convolution_keeps_its_input_and_its_output() -> None:
    assert live(nn.Conv2d(8, 8, 3, padding=1), 1, 8, 10, 10) == 2 * VALUE
    assert live(nn.Conv2d(8, 8, 3, padding=1), 1, 8, 10, 10, itemsize=1) == 2 * VALUE // 4


def test_what_follows_pointwise_is_in_place() -> None:
    chain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Hardswish())
    assert live(chain, 1, 8, 10, 10) == 2 * VALUE


def test_a_chain_frees_what_is_read() -> None:
    assert live(nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))), 1, 8, 10, 10) == 2 * VALUE


def test_the_caller_s_input_is_not_overwritten() -> None:
    assert live(nn.ReLU(), 1, 8, 10, 10) == 2 * VALUE


def test_a_residual_is_kept_until_it_is_added() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.second(self.first(x)) + x)

    assert live(Block(), 1, 8, 10, 10) == 3 * VALUE


def test_views_are_no_memory_and_keep_theirs_alive() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(8, 8, 3, padding=1)
            self.dense = nn.Linear(100, 100)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = self.convolution(x).reshape(8, 100)
            return self.dense(seen).permute(1, 0)

    assert live(Viewed(), 1, 8, 10, 10) == 2 * VALUE


def test_indices_that_nobody_reads_do_not_count() -> None:
    assert live(nn.MaxPool2d(2), 1, 8, 10, 10) == VALUE + VALUE // 4


def test_all_results_live_to_the_end() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept = self.first(x)
            return kept, self.second(kept)

    assert live(Both(), 1, 8, 10, 10) == 2 * VALUE
