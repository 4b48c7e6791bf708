"""Boards by name: which processor one has, how many cores, and what its caches are. The targets' option `board`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from targets.cpu.processors import KIB, MIB, Processor


@dataclass(frozen=True, slots=True)
class Board:
    """What a processor's own entry cannot know: how many cores a chip has, and how much L2 cache for each."""

    name: str
    #: The processor's name in `targets.cpu.processors`.
    processor: str
    cores: int
    #: One core's share of the L2 cache.
    l2_bytes: int

    def of(self, processor: Processor) -> Processor:
        """That processor as it is on this board."""
        return replace(processor, cores=self.cores, l2_bytes=self.l2_bytes)


ARM64 = (
    Board("rpi3", "cortex-a53", 4, 128 * KIB),
    Board("rpi4", "cortex-a72", 4, 256 * KIB),
    Board("rpi5", "cortex-a76", 4, 512 * KIB),
    Board("jetson-nano", "cortex-a57", 4, 512 * KIB),
    Board("jetson-xavier", "carmel", 8, MIB),
    # Six is what the Orin Nano and the smaller Orin NX have; others have up to twelve.
    Board("jetson-orin", "cortex-a78ae", 6, 256 * KIB),
    # Whatever Jetson is sold now.
    Board("jetson-cpu", "cortex-a78ae", 6, 256 * KIB),
    Board("ultra96", "cortex-a53", 4, 256 * KIB),
)

ARMV7 = (
    Board("pynq", "cortex-a9", 2, 256 * KIB),
    Board("rpi2", "cortex-a7", 4, 128 * KIB),
    Board("rpi3", "cortex-a53", 4, 128 * KIB),
)
