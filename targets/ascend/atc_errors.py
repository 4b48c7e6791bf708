"""What ATC's error codes mean and what to do about them, as data.

Codes are those of the registry in CANN's graph engine (``hicann/ge``, ``base/common/error_registry``) and of releases
before it; their wording changes from release to release, so only codes are matched.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: The beginning of an error or a warning; what belongs to it is indented.
_BLOCK = re.compile(r"^([EW][A-Z0-9][0-9]{4}): ?(.*)$")
#: What newer releases put before the message.
_STAMP = re.compile(r"^(\[PID: ?\d+\] )?(\d{4}-\d\d-\d\d-[\d:.]+ )?")
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.I)


class Meaning(NamedTuple):
    what: str
    hint: str


_SHAPES = "give the batch with the option 'batch' or 'batches', or export the model with fixed shapes"
_REPORT = "this should not come from a build of fleet's: see the log"
CODES = {
    "E10001": Meaning("a value that ATC was given is not valid", "see the reason that it gives"),
    "E10002": Meaning("the input shapes are not well-formed", _REPORT),
    "E10003": Meaning("a flag has a value that it cannot have", "does this release of CANN know that option?"),
    "E10004": Meaning("a flag has no value", _REPORT),
    "E10005": Meaning("a flag must be true or false", _REPORT),
    "E10006": Meaning("a flag must be 0 or 1", _REPORT),
    "E10007": Meaning("the framework of the model was not named", _REPORT),
    "E10009": Meaning("several kinds of dynamic shapes were asked for at once", _REPORT),
    "E10011": Meaning("a dimension of an input is not a positive number", _SHAPES),
    "E10012": Meaning("dynamic batches need an input whose batch is open", _SHAPES),
    "E10014": Meaning("a flag has a value that it cannot have", "does this release of CANN know that option?"),
    "E10016": Meaning("an input or an operator that was named is not in the model", _REPORT),
    "E10018": Meaning("only the first dimension of an input may be open", _SHAPES),
    "E10031": Meaning("no input has an open batch", _SHAPES),
    "E10021": Meaning("a path is too long", "give the agent a home with a shorter path"),
    "E10022": Meaning("a path has no file name", _REPORT),
    "E10035": Meaning("there are too few batches to choose from", "name two or more in the option 'batches'"),
    "E10036": Meaning("there are too many batches to choose from", "name at most 100 in the option 'batches'"),
    "E10039": Meaning("a batch is named twice", "name each once in the option 'batches'"),
    "E10041": Meaning(
        "the model cannot be loaded", "is the opset one that this release of CANN knows? build with 'opset'"
    ),
    "E10049": Meaning("an input has another number of dimensions than the model says", _REPORT),
    "E10052": Meaning("the configuration of AIPP is not valid", "build without the option 'aipp'"),
    "E10054": Meaning("a flag is missing", _REPORT),
    "E10056": Meaning("two precision modes were given", "give one in the option 'precision_mode'"),
    "E10410": Meaning("a file is missing", "see the log"),
    "E13000": Meaning("a path is empty", _REPORT),
    "E13026": Meaning("a path is not valid", "give the agent a home whose path has plain characters only"),
    "E16002": Meaning(
        "an operator of the model is not known to ATC", "build with another 'opset', or replace that operator"
    ),
    "E16004": Meaning("the model has no graph", "export it again"),
    "E16005": Meaning("the model mixes several sets of operators", "export it with ONNX's own operators only"),
    "E19010": Meaning(
        "an operator of the model is not known to ATC", "build with another 'opset', or replace that operator"
    ),
    "EZ3003": Meaning("an operator is not there for this chip", "replace that operator, or use another precision_mode"),
    "EC0010": Meaning(
        "ATC's Python lacks a package or cannot compile an operator",
        "install what the log names into the Python on the toolkit's path (decorator, sympy, numpy, attrs, psutil, …)",
    ),
    "E40000": Meaning(
        "ATC's Python lacks a package or cannot compile an operator",
        "install what the log names into the Python on the toolkit's path (decorator, sympy, numpy, attrs, psutil, …)",
    ),
    "E19999": Meaning("ATC failed inside", "see the log, and CANN's own below ~/ascend/log"),
    "EZ9999": Meaning("ATC failed inside", "see the log, and CANN's own below ~/ascend/log"),
}


class Explained(NamedTuple):
    """``code`` is empty where ATC gave none."""

    code: str
    message: str
    hint: str


def explain(output: str, status: int) -> Explained:
    """Why ATC failed, from what it printed: its first error that has a meaning here, else its first, else its end."""
    if full := _FULL.search(output):
        return Explained("", f"the disk is full: {full[0].lower()}", "free some space on the board")
    found = [block for block in blocks(output) if block[0].startswith("E")]
    known = [block for block in found if block[0] in CODES and block[0] not in ("E19999", "EZ9999")]
    if not found:
        lines = [line.strip() for line in output.splitlines() if line.strip(" .\t")]
        words = lines[-1][:300] if lines else "it said nothing"
        missing = "shared libraries" in words
        hint = "is the driver installed? on a host without one, add the toolkit's devlib to LD_LIBRARY_PATH"
        return Explained("", f"exit status {status}: {words}", hint if missing else "")
    code, words = (known or found)[0]
    meaning = CODES.get(code, Meaning("", ""))
    what = f"{meaning.what}: " if meaning.what else ""
    return Explained(code, f"{code}: {what}{words[:400]}", meaning.hint)


def blocks(output: str) -> list[tuple[str, str]]:
    """Codes and messages of the errors and warnings that ATC printed, in order."""
    found: list[tuple[str, str]] = []
    for line in output.splitlines():
        if match := _BLOCK.match(line.lstrip(".")):
            found.append((match[1], _STAMP.sub("", match[2]).strip()))
        elif found and line.startswith(" " * 8) and not found[-1][1]:
            found[-1] = (found[-1][0], line.strip())
    return found
