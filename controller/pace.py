"""How large the chunks of a push are: as large as the link carries quickly, so that a cut or a pause loses little."""

from __future__ import annotations

from targets.defaults import CHUNK_FIRST, CHUNK_LARGEST, CHUNK_QUICK, CHUNK_SLOW, CHUNK_SMALLEST


class Pace:
    """Chunk size that follows the time from sending a chunk to its acknowledgement.

    It grows fourfold while that is short and halves when it gets long. A fast link so gets chunks whose handling costs
    little, a slow one chunks between which heartbeats still pass.
    """

    def __init__(self) -> None:
        #: Bytes that the next chunk may have.
        self.size = CHUNK_FIRST

    @property
    def in_flight(self) -> int:
        """Bytes that may be on their way at once."""
        return 2 * self.size

    def acknowledged(self, length: int, seconds: float) -> None:
        """A chunk of ``length`` bytes was acknowledged after ``seconds``. Smaller ones than asked for tell nothing."""
        if length < self.size:
            return
        if seconds < CHUNK_QUICK:
            self.size = min(self.size * 4, CHUNK_LARGEST)
        elif seconds > CHUNK_SLOW:
            self.size = max(self.size // 2, CHUNK_SMALLEST)
