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

#: Codes of errors that are raised, not reported per device, for what the person gave: names, options, files.
_USAGE_CODES = frozenset(
    {
        # How it was called.
        *("usage", "nothing-selected", "exists", "missing-extra", "bad-option", "bad-slot", "bad-spec", "bad-export"),
        # Names that mean nothing, or too much.
        *("unknown-device", "unknown-target", "unknown-label", "unknown-model", "unknown-run", "unknown-bundle"),
        *("ambiguous-run", "same-run"),
        # Files that are not there, or not what they should be.
        *("no-such-file", "no-inventory", "inventory", "bad-picture", "bad-key", "bad-results-url"),
        *("bad-model", "bad-weights", "no-picture-model", "bad-preprocess", "torch-missing"),
        *("bad-bundle", "bad-digest", "bad-path", "bad-size", "bad-signature", "unsigned", "untrusted-key"),
        *("too-large", "wrong-target", "bad-calibration", "bad-dataset", "bad-classes", "bad-baseline"),
        # The accelerator's: configurations, programs, bitstreams.
        *("bad-vta-config", "bad-vta-program", "bad-vta-folder", "bad-vta-field", "wrong-configuration"),
        *("unknown-board", "unknown-bitstream", "ambiguous-bitstream", "bad-manifest", "bad-bitstream"),
        *("wrong-part", "wrong-digest", "bad-calibration", "bad-input", "no-program"),
    }
)


def of(code: str) -> int:
    """The exit code for a :class:`targets.base.FleetError` with this ``code``."""
    if code == "nothing-matched":
        return NOTHING_MATCHED
    if code == "interrupted":
        return INTERRUPTED
    return USAGE if code in _USAGE_CODES else FAILED
