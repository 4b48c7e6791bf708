"""What the simulated atc says when it refuses: codes, texts and their layout in the releases of CANN.

Texts are those of hicann/ge, base/common/error_registry/error_registry.cc.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from targets.ascend.sim.board import version_key

#: ``%s`` stands for an argument, which releases before 8.5 put in brackets.
_TEXTS = {
    "E10001": "Value %s for parameter %s is invalid. Reason: %s",
    "E10002": (
        "Value %s for parameter --input_shape is invalid. Reason: %s. The value must be formatted as "
        '"input_name1:n1,c1,h1,w1;input_name2:n2,c2,h2,w2".'
    ),
    "E10003": "Value %s for parameter --%s is invalid. Reason: %s",
    "E10004": "Value for --%s is empty.",
    "E10005": "Value %s for parameter --%s is invalid. The value must be either true or false.",
    "E10006": "Value %s for parameter --%s is invalid. The value must be either 1 or 0.",
    "E10007": "%s is required. The value must be %s.",
    "E10008": "--weight must not be empty when --framework is set to 0 (Caffe).",
    "E10009": (
        "--dynamic_batch_size, --dynamic_image_size, --input_shape_range, and --dynamic_dims are mutually exclusive."
    ),
    "E10010": "Value %s for parameter --log is invalid.",
    "E10011": (
        "Value %s for parameter --input_shape is invalid. Shape values must be positive integers. "
        "The error value in the shape is %s."
    ),
    "E10012": "--dynamic_batch_size is set, but there is no input whose batch is -1.",
    "E10014": "Value %s for parameter --%s is invalid.",
    "E10016": "Op name %s specified in --%s is not found in the model. Confirm whether this node name exists.",
    "E10018": "Value %s for shape %s is invalid. When --dynamic_batch_size is included, only batch size N can be -1.",
    "E10019": "When --dynamic_image_size is included, only the height and width axes of --input_shape can be -1.",
    "E10020": 'Value %s for parameter --dynamic_image_size is invalid. The value must be formatted as "h1,w1;h2,w2".',
    "E10021": "The path length of parameter --%s exceeds %s.",
    "E10022": "Path %s for parameter --%s does not include the file name.",
    "E10031": "No input has batch -1 in --input_shape, although --dynamic_batch_size is set.",
    "E10035": "--dynamic_batch_size, --dynamic_image_size, or --dynamic_dims has %s profiles, which is less than 2.",
    "E10036": "--dynamic_batch_size, --dynamic_image_size, or --dynamic_dims has %s profiles, which is more than 100.",
    "E10037": "--dynamic_dims has profiles of unequal length %s, but --input_shape has %s axes of -1.",
    "E10039": "--dynamic_batch_size, --dynamic_image_size, or --dynamic_dims has the same profile twice.",
    "E10040": "Nodes specified in --input_shape must have -1 axes and cannot have '~' when a dynamic profile is set.",
    "E10041": "Failed to load the model from %s.",
    "E10049": "Dimension count %s configured in --input_shape does not match dimension count %s of the node.",
    "E10052": "AIPP configuration is invalid. Reason: %s.",
    "E10054": (
        "The required parameter %s for ATC is empty. Another possible reason is that the values of some parameters "
        'are not enclosed by quotation marks ("").'
    ),
    "E10056": "Cannot configure both parameters %s and %s simultaneously.",
    "E10410": "File %s does not exist.",
    "E16002": "No ONNX parser is registered for optype %s.",
    "E16004": "ONNX model has no graph.",
    "E16005": "The model has %s --domain_version fields, but only one is allowed.",
    "E19010": "No parser is registered for Op [%s, optype %s].",
    "E19999": "Inner Error!",
    "EZ3003": "No supported Ops kernel and engine are found for %s, optype %s.",
}
_SOLUTIONS = {
    "E10001": "Try again with a valid argument.",
    "E10007": "Set a valid parameter value.",
    "E10054": "Enter a valid value for the parameter.",
}
SUCCESS = "ATC run success, welcome to the next use."
START = "ATC start working now, please wait for a moment."
FAILED = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
_SLOW_OPERATOR = (
    "W11001: Op [Conv_0] does not hit the high-priority operator information library, which might result in "
    "compromised performance."
)


class AtcError(Exception):
    """A refusal with one of the registry's codes. ``text`` replaces the registry's, for a code that it lacks."""

    def __init__(self, code: str, *arguments: object, text: str | None = None) -> None:
        super().__init__(code, *arguments)
        self.code = code
        self.arguments = tuple(str(argument) for argument in arguments)
        self.text = text


@dataclass(frozen=True)
class Style:
    """How a release of CANN words things."""

    #: Values in brackets, and "requied parameter" as it was spelt.
    brackets: bool
    #: Blocks carry the process and the time.
    stamps: bool
    #: A line of three dots before the end.
    dots: bool
    #: ``--model`` is asked for before ``--framework``.
    model_first: bool
    #: ONNX operators without a parser are E16002, E19010 before.
    onnx_code: bool
    #: ``--auto_tune_mode`` is refused.
    no_tuning: bool

    @classmethod
    def of(cls, cann: str) -> Style:
        version = version_key(cann)[:2]
        return cls(
            brackets=version < (8, 5),
            stamps=version >= (8, 0),
            dots=version >= (8, 0),
            model_first=version < (7, 0),
            onnx_code=version >= (8, 0),
            no_tuning=version >= (8, 5),
        )


def warning(noise: bool) -> str:
    return f"{_SLOW_OPERATOR}\n" if noise else ""


def block(error: AtcError, style: Style) -> str:
    """An error's lines: ``E10001: Value [x] for parameter [y] is invalid. …`` and what else belongs to it."""
    code, arguments = error.code, error.arguments
    if code == "E16002" and not style.onnx_code:
        code, arguments = "E19010", (arguments[1], f"[{arguments[0]}]")
    if code == "E16002":
        arguments = arguments[:1]
    if error.text is not None:
        text = error.text
    else:
        shown = tuple(f"[{argument}]" for argument in arguments) if style.brackets and code != "E19010" else arguments
        text = _TEXTS[code] % _plain_reason(code, shown, arguments)
    if style.brackets and code == "E10054":
        text = text.replace("The required parameter", "The requied parameter")
    stamp = f"[PID: {os.getpid()}] {_now()} " if style.stamps else ""
    lines = [f"{code}: {stamp}{text}"]
    if code in _SOLUTIONS:
        lines.append(f"        Solution: {_SOLUTIONS[code]}")
    if code == "E19999" and error.text is None:
        lines.append("        Unknown error occurred. Please check the log.")
    return "\n".join(lines) + "\n"


def _plain_reason(code: str, shown: tuple[str, ...], arguments: tuple[str, ...]) -> tuple[str, ...]:
    """A reason is a sentence and was never in brackets."""
    if code in ("E10001", "E10003") and shown:
        return (*shown[:-1], arguments[-1])
    if code == "E10052":
        return arguments
    return (shown[0], arguments[1], *shown[2:]) if code == "E10002" else shown


def _now() -> str:
    now = time.time()
    milliseconds, microseconds = divmod(int(now % 1 * 1_000_000), 1000)
    return time.strftime("%Y-%m-%d-%H:%M:%S", time.localtime(now)) + f".{milliseconds:03}.{microseconds:03}"
