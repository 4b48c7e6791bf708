"""Exit codes, and which errors give which."""

from __future__ import annotations

GOOD = 0
#: Some device, build or comparison failed.
FAILED = 1
#: The command was used wrongly: an option, a name or a file that it was given.
USAGE = 2
#: The request was fine, but there is no such device, run or release.
NOTHING_MATCHED = 3
INTERRUPTED = 130
#: What a shell shows for a program that SIGPIPE ended.
BROKEN_PIPE = 141

_USAGE_CODES = frozenset(
    {
        "usage",
        "nothing-selected",
        "no-inventory",
        "unknown-device",
        "unknown-target",
        "unknown-label",
        "unknown-model",
        "unknown-run",
        "unknown-key",
        "ambiguous",
        "exists",
        "bad-inventory",
        "inventory",
        "bad-model",
        "bad-bundle",
        "bad-option",
        "bad-options",
        "bad-picture",
        "bad-weights",
        "bad-key",
        "bad-fault",
        "wrong-target",
        "no-model",
        "not-found",
        "missing-extra",
    }
)


def of(code: str) -> int:
    """The exit code for a :class:`targets.base.FleetError` with this ``code``."""
    if code == "nothing-matched":
        return NOTHING_MATCHED
    if code == "interrupted":
        return INTERRUPTED
    return USAGE if code in _USAGE_CODES else FAILED
