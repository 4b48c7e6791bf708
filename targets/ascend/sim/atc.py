"""The simulated ``atc``: its checks in their order, its lines, and an offline model that onnxruntime can run.

Source of the order: hicann/ge, api/atc/main_impl.cc.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from targets.ascend.sim import aipp, atc_flags, atc_messages, atc_shapes, chips, om
from targets.ascend.sim.atc_messages import AtcError, Style
from targets.ascend.sim.board import Board, Fault, load

#: ge::FAILED has all its bits set, of which a shell sees eight.
FAILED = 255
#: The loader's status when a library is missing, and the shell's when a command is.
NOT_FOUND = 127
MAX_PATH = 4096
_PATH = re.compile(r"[A-Za-z0-9./_\-\s\u4e00-\u9fa5]+")
_ONNX = "5"
_FRAMEWORKS = ("0", "1", "3", "5")
_LOG_LEVELS = ("debug", "info", "warning", "error", "null")
_IMPLMODES = ("", "high_performance", "high_precision", "high_performance_for_all", "high_precision_for_all")
#: Whether a mode computes in half precision what the network has in single precision.
_PRECISION = {
    "force_fp16": True,
    "force_fp32": False,
    "cube_fp16in_fp32out": True,
    "allow_fp32_to_fp16": False,
    "must_keep_origin_dtype": False,
    "allow_mix_precision": True,
    "allow_mix_precision_fp16": True,
    "allow_mix_precision_bf16": False,
    "allow_fp32_to_bf16": False,
}
_PRECISION_V2 = {
    "fp16": True,
    "origin": False,
    "cube_fp16in_fp32out": True,
    "mixed_float16": True,
    "mixed_bfloat16": False,
}
_BOOLEANS = ("enable_compress_weight",)
_SWITCHES = ("enable_small_channel", "disable_reuse_memory", "display_model_info", "deterministic")


def main(prefix: Path, arguments: Sequence[str]) -> int:
    """Run the tool in the current folder; its exit status."""
    board = load(prefix)
    style = Style.of(board.cann)
    if board.faults.atc:
        _early_fault(board.faults.atc)
        if board.faults.atc.kind in ("absent", "no-driver"):
            return NOT_FOUND
    _say(atc_messages.START)
    try:
        flags = atc_flags.parse(arguments)
    except atc_flags.Help:
        _say(atc_flags.usage().rstrip("\n"))
        return 0
    except atc_flags.FlagError as error:
        sys.stderr.write(f"{error}\n")
        return _failed(AtcError("E19999"), style)
    try:
        _run(board, flags, style)
    except AtcError as error:
        _log(flags, "ERROR", f"{error.code}: {error.text or ', '.join(error.arguments)}")
        return _failed(error, style)
    except OSError as error:
        reason = f"Inner Error! Write failed: {error.strerror or error}"
        return _failed(AtcError("E19999", text=reason), style)
    if style.dots:
        _say("..." if not board.noise else "......")
    _say(atc_messages.SUCCESS)
    sys.stdout.write(atc_messages.warning(board.noise))
    _log(flags, "INFO", atc_messages.SUCCESS)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _failed(error: AtcError, style: Style) -> int:
    if style.dots:
        _say("...")
    _say(atc_messages.FAILED)
    sys.stdout.write(atc_messages.block(error, style))
    sys.stdout.flush()
    return FAILED


def _early_fault(fault: Fault) -> None:
    if fault.kind == "absent":
        sys.stderr.write("bash: atc: command not found\n")
    if fault.kind == "no-driver":
        sys.stderr.write(
            f"{Path(sys.argv[0]).name}.bin: error while loading shared libraries: libascend_hal.so: "
            "cannot open shared object file: No such file or directory\n"
        )


def _late_fault(fault: Fault, output: Path) -> None:
    """What goes wrong once the compiler is at work."""
    if fault.kind == "fail":
        raise AtcError(fault.code, text=fault.text)
    if fault.kind == "hang":
        while True:
            signal.pause()
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "no-space":
        output.write_bytes(om.MAGIC)
        raise OSError(28, "No space left on device")
    if fault.kind == "garbage":
        sys.stdout.buffer.write(bytes(range(256)) * 64)
        sys.stdout.flush()
        raise SystemExit(0)


def _run(board: Board, flags: Mapping[str, str], style: Style) -> None:
    if flags["log"] not in _LOG_LEVELS:
        raise AtcError("E10010", flags["log"])
    if flags["mode"] != "0":
        raise AtcError("E10001", flags["mode"], "--mode", "The simulated atc has mode 0 only.")
    if style.no_tuning and flags["auto_tune_mode"]:
        reason = "The Auto Tune function has been deprecated. Please use the AOE tool for tuning."
        raise AtcError("E10001", flags["auto_tune_mode"], "--auto_tune_mode", reason)
    if flags["singleop"]:
        raise AtcError("E10001", flags["singleop"], "--singleop", "The simulated atc compiles networks only.")
    model, output = _required(flags, style)
    _options(flags)
    precision, half = _precision(flags)
    shapes = atc_shapes.read(flags)
    if shapes.kind == "shape" and flags["soc_version"].startswith("Ascend310B"):
        raise AtcError("E10001", flags["input_shape"], "--input_shape", "This chip has no dynamic shapes.")
    blocks = _aipp(flags)
    if board.noise:
        _dots()
    # The networks' libraries take half a second to load: whatever can be refused was refused before.
    from targets.ascend.sim import atc_model

    graph = _parsed(model, board, flags)
    fp16 = half and board.fp16
    header, network = atc_model.build(graph, shapes, flags, blocks, fp16=fp16, precision=precision, cann=board.cann)
    _side_files(header)
    if board.faults.atc:
        _late_fault(board.faults.atc, output)
    om.write(output, header, network)


def _required(flags: Mapping[str, str], style: Style) -> tuple[Path, Path]:
    if style.model_first and not flags["model"]:
        raise AtcError("E10054", "--model")
    if flags["framework"] not in _FRAMEWORKS:
        raise AtcError("E10007", "--framework", "0(Caffe) or 1(MindSpore) or 3(TensorFlow) or 5(Onnx)")
    if flags["framework"] == "0" and not flags["weight"]:
        raise AtcError("E10008")
    if not flags["soc_version"]:
        raise AtcError("E10054", "--soc_version")
    if not chips.known_soc(flags["soc_version"]):
        raise AtcError("E10001", flags["soc_version"], "--soc_version", "The soc version is not supported.")
    if not flags["output"]:
        raise AtcError("E10054", "--output")
    if not flags["model"]:
        raise AtcError("E10054", "--model")
    model = _readable(flags["model"], "--model", style)
    return model, _output(flags["output"])


def _readable(text: str, flag: str, style: Style) -> Path:
    if not _PATH.fullmatch(text):
        characters = "The path can only contain 'a-z' 'A-Z' '0-9' '-' '.' '_' and Chinese characters."
        raise AtcError("E10001", text, flag, characters)
    path = Path(text)
    if not path.exists():
        reason = "[Errno 2] No such file or directory"
        raise AtcError(
            "E10001",
            text,
            flag,
            "realpath error, errmsg:No such file or directory" if style.brackets else reason,
        )
    if not os.access(path, os.R_OK):
        reason = "cat not access, errmsg:Permission denied" if style.brackets else "[Errno 13] Permission denied"
        raise AtcError("E10001", text, flag, reason)
    return path


def _output(text: str) -> Path:
    if len(text) > MAX_PATH:
        raise AtcError("E10021", "output", MAX_PATH)
    if text.endswith("/"):
        raise AtcError("E10022", text, "output")
    if not _PATH.fullmatch(text):
        characters = "The path can only contain 'a-z' 'A-Z' '0-9' '-' '.' '_' and Chinese characters."
        raise AtcError("E10001", text, "--output", characters)
    path = Path(f"{text}.om")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _options(flags: Mapping[str, str]) -> None:
    if flags["op_select_implmode"] not in _IMPLMODES:
        raise AtcError("E10003", flags["op_select_implmode"], "op_select_implmode", f"It is none of {_IMPLMODES[1:]}.")
    if flags["optypelist_for_implmode"] and not flags["op_select_implmode"]:
        raise AtcError("E10001", flags["optypelist_for_implmode"], "--optypelist_for_implmode", "It wants an implmode.")
    for name in _BOOLEANS:
        if flags[name] not in ("true", "false"):
            raise AtcError("E10005", flags[name], name)
    for name in _SWITCHES:
        if flags[name] not in ("0", "1"):
            raise AtcError("E10006", flags[name], name)
    if flags["input_format"] not in ("", "NCHW", "NHWC", "NCDHW", "ND"):
        raise AtcError("E10001", flags["input_format"], "--input_format", "ONNX has NCHW, NCDHW and ND.")
    if flags["buffer_optimize"] not in ("l1_optimize", "l2_optimize", "off_optimize"):
        raise AtcError("E10003", flags["buffer_optimize"], "buffer_optimize", "It is no way to optimise buffers.")
    for name in ("fusion_switch_file", "op_precision_mode", "keep_dtype", "modify_mixlist", "compress_weight_conf"):
        if flags[name] and not Path(flags[name]).is_file():
            raise AtcError("E10410", flags[name])


def _precision(flags: Mapping[str, str]) -> tuple[str, bool]:
    old, new = flags["precision_mode"], flags["precision_mode_v2"]
    if old and new:
        raise AtcError("E10056", "--precision_mode", "--precision_mode_v2")
    name, modes = ("precision_mode_v2", _PRECISION_V2) if new else ("precision_mode", _PRECISION)
    mode = new or old or "force_fp16"
    if mode not in modes:
        raise AtcError("E10001", mode, f"--{name}", f"The value must be one of {', '.join(modes)}.")
    return mode, modes[mode]


def _aipp(flags: Mapping[str, str]) -> tuple[om.Aipp, ...]:
    name = flags["insert_op_conf"]
    if not name:
        return ()
    path = Path(name)
    if not path.is_file():
        raise AtcError("E10410", name)
    if path.stat().st_size > aipp.MAX_FILE:
        raise AtcError("E10052", "the file is too large")
    try:
        blocks = aipp.parse(path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise AtcError("E10052", "the file is no text") from None
    aipp.check_flags(blocks, flags)
    return blocks


def _parsed(model: Path, board: Board, flags: Mapping[str, str]) -> object:
    from targets.ascend.sim import atc_model

    try:
        if flags["framework"] != _ONNX:
            # Another framework's parser does not understand an ONNX file; the simulator reads nothing else.
            raise AtcError("E10041", model)
        return atc_model.parse(model, board.unsupported)
    except AtcError as error:
        Path(flags["check_report"]).write_text(json.dumps({"code": error.code, "op": list(error.arguments)}) + "\n")
        raise


def _dots() -> None:
    """Slow operators: dots that no line end follows."""
    sys.stdout.write(".." * 4)
    sys.stdout.flush()


def _side_files(header: om.Header) -> None:
    Path("kernel_meta").mkdir(exist_ok=True)
    passes = {"graph_fusion": {}, "session_and_graph_id": "0_0", "ub_fusion": {}, "simulated": header.simulated}
    Path("fusion_result.json").write_text(json.dumps([passes], indent=4) + "\n")


def _log(flags: Mapping[str, str], level: str, text: str) -> None:
    """A line of the debug log, in the file where the real one lies, and on the screen when the environment says so."""
    order = ["DEBUG", "INFO", "WARNING", "ERROR", "NULL"]
    now = time.strftime("%Y-%m-%d-%H:%M:%S.000.000")
    pid = os.getpid()
    line = f"[{level}] GE({pid},atc.bin):{now} [main_impl.cc:1]{pid} Main: {text}\n"
    if os.environ.get("ASCEND_SLOG_PRINT_TO_STDOUT") == "1":
        sys.stdout.write(line)
    if flags["log"] not in _LOG_LEVELS or order.index(level) < order.index(flags["log"].upper()):
        return
    root = os.environ.get("ASCEND_PROCESS_LOG_PATH") or f"{Path.home()}/ascend/log"
    folder = Path(root) / "debug" / "plog"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"plog-{pid}_{time.strftime('%Y%m%d%H%M%S')}000.log").open("a") as file:
        file.write(line)
