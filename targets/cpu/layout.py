"""How a picture's values lie in memory: channels in blocks of one vector register, with the border convolutions need.

The blocked layout is that of Georganas et al. 2018 (arXiv:1808.05567): a vector register holds the same pixel of
neighbouring channels, so that neither a stride, a dilation nor a narrow picture costs vector lanes. A border that later
convolutions read as padding is part of the buffer: its producer writes zeros there, and no consumer ever tests a
coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

#: N, C, H, W.
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """(N, ceil(C / block), top + H + bottom, left + W + right, block); a block of 1 is plain N, C, H, W with a border.

    Lanes of the last block beyond C hold what they hold; nothing reads them as channels.
    """

    block: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def physical(self, shape: Shape) -> tuple[int, ...]:
        """Dimensions of the buffer that holds N, C, H, W."""
        n, c, h, w = shape
        rows, columns = self.top + h + self.bottom, self.left + w + self.right
        return (n, c, rows, columns) if self.block == 1 else (n, -(-c // self.block), rows, columns, self.block)

    @property
    def border(self) -> tuple[int, int, int, int]:
        """Rows above, columns left, rows below, columns right."""
        return self.top, self.left, self.bottom, self.right

    @property
    def bordered(self) -> bool:
        """Whether there is a border at all."""
        return any(self.border)

    def covers(self, other: Layout) -> bool:
        """Whether a buffer in this layout can be read where ``other`` is wanted."""
        return self.block == other.block and all(
            have >= want for have, want in zip(self.border, other.border, strict=True)
        )


#: N, C, H, W as every framework has it.
PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class ImageType:
    """A picture's logical shape N, C, H, W, its element type and its layout.

    A picture of integers holds numbers in steps of some scale, counted from ``zero_point``.
    """

    shape: Shape
    layout: Layout = PLAIN
    dtype: str = "float32"
    zero_point: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.shape[1] // self.layout.block)

    @property
    def physical(self) -> tuple[int, ...]:
        return self.layout.physical(self.shape)
