"""How much memory a process of an emulated board has, without what the emulator adds to it."""

from __future__ import annotations

from pathlib import Path

#: What a board's process can address: all of it is one piece of the emulator's own memory.
_GUEST_32 = 1 << 32
#: Programs of arm64 are loaded below this by qemu, which itself is loaded far above.
_GUEST_64 = 1 << 40


def resident(pid: int) -> int:
    """Bytes in memory of the program that the emulator ``pid`` runs: its files, heap and stacks.

    The emulator's own heap and the machine code that it makes of the program's are not counted; a board has none.
    """
    found: list[tuple[int, str, int]] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        word, *rest = line.split(maxsplit=5)
        if "-" in word and ":" not in word:
            found.append((int(word.partition("-")[0], 16), rest[-1] if len(rest) == 5 else "", 0))
        elif word == "Rss:":
            start, name, _ = found[-1]
            found[-1] = (start, name, int(rest[0]) * 1024)
    program = min(start for start, name, _ in found if "/bin/python" in name)
    low, high = (0, _GUEST_64) if program < _GUEST_64 else (program - program % (1 << 16) - (1 << 16), 0)
    high = high or low + _GUEST_32
    return sum(size for start, _, size in found if low <= start < high)
