"""The command line of the simulated ais_bench: flags, defaults and checks of version 0.0.2.

Source: ais_bench/infer/__main__.py, args_check.py and path_security_check.py of the Ascend Inference Tools.
"""

from __future__ import annotations

import argparse
import grp
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_PATH = 4096
MAX_NAME = 255
MAX_MODEL = 10 << 30
MAX_INPUT = 4 << 30
_ALLOWED = re.compile(r"[_A-Za-z0-9/.-]+")
logger = logging.getLogger("ais_bench")


def path_error(path: str, suffixes: tuple[str, ...], limit: int) -> str:
    """Why a file that is to be read cannot be trusted; empty when it can."""
    if not Path(path).exists():
        return f"path: {path} not exist, please check if file or dir is exist"
    if not _ALLOWED.fullmatch(path):
        return f"path:{path} contains illegal char, legal chars include '-_./a-zA-Z0-9'"
    if len(path) > MAX_PATH or any(len(part) > MAX_NAME for part in path.split("/")):
        return f"path:{path[:64]} is too long"
    if Path(path).is_symlink():
        return f"path :{path} is a soft link, not supported, please import file(or directory) directly"
    found = Path(path).stat()
    if found.st_uid != os.geteuid() and found.st_gid not in {os.getegid(), *os.getgroups()}:
        owner = grp.getgrgid(os.getegid()).gr_name
        return f"current user isn't path:{path}'s owner or ownergroup ({owner})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"The file {path} is group writable, or is others writable, as import file(or directory), "
            "permission should not be over 0o755(rwxr-xr-x)"
        )
    if stat.S_ISREG(found.st_mode):
        if suffixes and not path.endswith(suffixes):
            return f"path:{path} is not one of {', '.join(suffixes)}"
        if found.st_size > limit:
            return f"path:{path} has {found.st_size} bytes, more than {limit}"
    return ""


def _checked(what: str, suffixes: tuple[str, ...], limit: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        error = path_error(value, suffixes, limit)
        if error:
            logger.error(error)
            raise argparse.ArgumentTypeError(f"{what} path:{value} is illegal. Please check.")
        return value

    return check


def _inputs(value: str) -> str:
    for part in value.split(","):
        names = [part]
        if Path(part).is_dir():
            names += [str(found) for found in Path(part).iterdir()]
        for name in names:
            error = path_error(name, (), MAX_INPUT)
            if error:
                logger.error(error)
                raise argparse.ArgumentTypeError(f"input path:{name} is illegal. Please check.")
    return value


def _output(value: str) -> str:
    if not _ALLOWED.fullmatch(value) or len(value) > MAX_PATH:
        raise argparse.ArgumentTypeError(f"output path:{value} is illegal. Please check.")
    return value


def _bool(value: str) -> bool:
    if value.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if value.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected true, 1, false, 0 with case insensitive.")


def _integer(value: str, least: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{value} is an invalid {'positive' if least else 'nonnegative'} int value")
    return number


def _positive(value: str) -> int:
    return _integer(value, 1)


def _natural(value: str) -> int:
    return _integer(value, 0)


def _device(value: str) -> int | list[int]:
    """One device as a number, several as a list: each gets a process of its own."""
    numbers = []
    for part in value.split(","):
        if not part.strip().isdecimal() or not 0 <= int(part) <= 255:
            raise argparse.ArgumentTypeError(f"device id:{part} is invalid. valid value range is [0, 255]")
        numbers.append(int(part))
    return numbers if len(numbers) > 1 else numbers[0]


def _batch(value: str) -> int:
    return _positive(value)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add = made.add_argument
    add("--model", "-m", type=_checked("om", (".om",), MAX_MODEL), required=True, help="the path of the om model")
    add("--input", "-i", type=_inputs, default=None, help="input file or dir")
    add("--output", "-o", type=_output, default=None, help="output path")
    add("--output_dirname", type=_output, default=None, help="actual output directory name, used with --output")
    add("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"], help="output file format")
    add("--loop", "-l", type=_positive, default=1, help="the round of the inference")
    add("--debug", type=_bool, default=False, help="debug switch, print model information")
    add("--device", "-d", type=_device, default=0, help="device id, 0 to 255, or several: 0,1,2")
    add("--dymBatch", dest="dym_batch", type=_positive, default=0, help="batch of a model with batch profiles")
    add("--dymHW", dest="dym_hw", type=str, default=None, help='image size of a model with profiles: "h,w"')
    add("--dymDims", dest="dym_dims", type=str, default=None, help='dims: "data:1,600;img_info:1,600"')
    add("--dymShape", "--dym-shape", dest="dym_shape", type=str, default=None, help='shape: "data:1,600"')
    add(
        "--outputSize", dest="output_size", type=str, default=None, help="bytes of each output of a dynamic shape model"
    )
    add("--auto_set_dymshape_mode", type=_bool, default=False, help="shape from each npy file")
    add("--auto_set_dymdims_mode", type=_bool, default=False, help="dims from each npy file")
    add("--dymShape_range", dest="dym_shape_range", type=str, default=None, help="ranges of shapes")
    add("--batchsize", type=_batch, default=None, help="batch size of the input, for the throughput only")
    add("--pure_data_type", default="zero", choices=["zero", "random"], help="data of a run without --input")
    add("--profiler", type=_bool, default=False, help="profiler switch")
    add("--dump", type=_bool, default=False, help="dump switch")
    add("--acl_json_path", type=_checked("acl json", (".json",), MAX_INPUT), default=None, help="acl json path")
    add("--output_batchsize_axis", type=_natural, default=0, help="axis on which outputs are split")
    add("--run_mode", default="array", choices=["array", "files", "tensor", "full"], help="run mode")
    add("--display_all_summary", type=_bool, default=False, help="show copies to and from the device too")
    add("--warmup_count", "--warmup-count", dest="warmup_count", type=_natural, default=1, help="warm-up count")
    add("--aipp_config", type=_checked("aipp config", (".config",), MAX_INPUT), default=None, help="dynamic AIPP")
    add("--energy_consumption", type=_bool, default=False, help="obtain power consumption data")
    add("--npu_id", type=_natural, default=0, help="the NPU id for --energy_consumption")
    add("--backend", default=None, choices=["trtexec"], help="backend of a comparison")
    add("--perf", type=_bool, default=False, help="compare with --backend")
    add("--pipeline", type=_bool, default=False, help="copy and compute side by side")
    add("--profiler_rename", type=_bool, default=True, help="rename the profiler's files")
    add("--dump_npy", type=_bool, default=False, help="dump as npy")
    add("--divide_input", type=_bool, default=False, help="divide the inputs among devices")
    add("--threads", type=_positive, default=1, help="number of computing threads, with --pipeline")
    return made


#: Flags of the real tool that need what the simulator does not have.
_MISSING = ("dym_shape_range", "aipp_config", "backend", "perf", "profiler", "dump", "acl_json_path", "divide_input")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The checked command line.

    Raises:
        SystemExit: status 2, argparse's.
        RuntimeError: flags that do not go together, or that the simulator does not have.
        ValueError: an absolute ``--output_dirname``.
    """
    args = parser().parse_args(arguments)
    if args.profiler and args.dump:
        logger.error("parameter --profiler cannot be true at the same time as parameter --dump, please check them!")
        raise RuntimeError("error bad parameters --profiler and --dump")
    if (args.profiler or args.dump) and not args.output:
        logger.error("when dump or profiler, miss output path, please check them!")
        raise RuntimeError("miss output parameter!")
    if args.output_dirname and not args.output:
        logger.error("parameter --output_dirname cann't be used alone. Please use it together with --output!")
        raise RuntimeError("error bad parameters --output_dirname")
    if args.output_dirname and Path(args.output_dirname).is_absolute():
        raise ValueError("--output_dirname do not support abs path!")
    if args.threads > 1 and not args.pipeline:
        logger.info("need to set --pipeline when setting threads number to be more than one.")
        args.threads = 1
    for name in _MISSING:
        if getattr(args, name):
            raise RuntimeError(f"the simulated ais_bench has no --{name}")
    return args
