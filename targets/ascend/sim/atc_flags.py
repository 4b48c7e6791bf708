"""The command line of the simulated atc: ``--x=v``, ``--x v``, ``-x=v`` and ``-x v``, with ``-`` and ``_`` alike."""

from __future__ import annotations

from collections.abc import Sequence

#: Every flag, its default, and what the help says. Source: hicann/ge, cmd_flag_info.cc.
FLAGS: dict[str, tuple[str, str]] = {
    "model": ("", "Model file"),
    "weight": ("", "Weight file. Required when framework is Caffe"),
    "framework": ("-1", "Framework type. 0:Caffe; 1:MindSpore; 3:TensorFlow; 5:Onnx"),
    "output": ("", "Output file path and name (without the suffix)"),
    "soc_version": ("", "The soc version"),
    "mode": ("0", "Run mode. 0: offline model; 1: JSON; 3: pre-check; 6: display the model's information"),
    "input_format": ("", "Format of the inputs"),
    "input_shape": ("", 'Shape of the inputs, e.g. "input_name1:n1,c1,h1,w1;input_name2:n2,c2,h2,w2"'),
    "input_shape_range": ("", "Deprecated: shape ranges of the inputs"),
    "dynamic_batch_size": ("", 'Batch profiles, e.g. "batch1,batch2,batch3"'),
    "dynamic_image_size": ("", 'Image size profiles, e.g. "h1,w1;h2,w2"'),
    "dynamic_dims": ("", 'Profiles of all -1 axes, e.g. "1,3;4,5"'),
    "insert_op_conf": ("", "Configuration file of AIPP"),
    "output_type": ("", "Data type of the outputs"),
    "out_nodes": ("", 'Output nodes, e.g. "node_name1:0;node_name2:1"'),
    "input_fp16_nodes": ("", "Inputs that are fp16"),
    "precision_mode": ("", "Precision mode, force_fp16 by default"),
    "precision_mode_v2": ("", "Precision mode, fp16 by default"),
    "op_precision_mode": ("", "File of precision modes of operators"),
    "modify_mixlist": ("", "File of operators of mixed precision"),
    "keep_dtype": ("", "File of operators that keep their precision"),
    "op_select_implmode": ("", "high_precision or high_performance"),
    "optypelist_for_implmode": ("", "Operator types for op_select_implmode"),
    "enable_small_channel": ("0", "Optimise few input channels. 0: off; 1: on"),
    "fusion_switch_file": ("", "File of fusion switches"),
    "disable_reuse_memory": ("0", "0: reuse memory; 1: do not"),
    "enable_compress_weight": ("false", "true or false"),
    "compress_weight_conf": ("", "File of weights to compress"),
    "buffer_optimize": ("l2_optimize", "l1_optimize, l2_optimize or off_optimize"),
    "auto_tune_mode": ("", "RL and GA"),
    "log": ("null", "Level of the log: debug, info, warning, error or null"),
    "check_report": ("./check_result.json", "File of the pre-check's result"),
    "op_compiler_cache_mode": ("enable", "enable, disable or force"),
    "op_compiler_cache_dir": ("", "Folder of the operator compiler's cache"),
    "op_debug_level": ("0", "0 to 4"),
    "debug_dir": ("", "Folder of what the operator compiler leaves"),
    "core_type": ("AiCore", "AiCore or VectorCore"),
    "aicore_num": ("", "Number of AI cores"),
    "display_model_info": ("0", "0 or 1"),
    "om": ("", "Offline model, for modes 1 and 6"),
    "json": ("", "JSON file, for mode 1"),
    "singleop": ("", "Single operator definition"),
    "host_env_os": ("", "Operating system of the board"),
    "host_env_cpu": ("", "Processor of the board"),
    "deterministic": ("0", "0 or 1"),
    "virtual_type": ("0", "0 or 1"),
    "sparsity": ("0", "0 or 1"),
    "is_input_adjust_hw_layout": ("", "true or false for each input"),
    "is_output_adjust_hw_layout": ("", "true or false for each output"),
}


class FlagError(Exception):
    """A command line that cannot be taken apart; the message is what goes to standard error."""


class Help(Exception):
    """``--help`` was given."""


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The value of every flag, by its name with underscores; the last of a repeated flag wins.

    Raises:
        FlagError: an unknown flag, one without its value, or a word that is no flag.
        Help: help was asked for.
    """
    values = {name: default for name, (default, _) in FLAGS.items()}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or not word.strip("-"):
            raise FlagError(f"ERROR: Non-option parameter: {word}")
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name in ("help", "h"):
            raise Help
        if name not in FLAGS:
            raise FlagError(f"ERROR: unknown command line flag '{name}'")
        if not equals:
            following = next(words, None)
            if following is None:
                raise FlagError(f"ERROR: flag '{name}' is missing its argument; flag description: {FLAGS[name][1]}")
            value = following
        values[name] = value
    return values


def usage() -> str:
    lines = [
        "usage: atc <args>",
        "generate offline model example:",
        "atc --model=./alexnet.prototxt --weight=./alexnet.caffemodel --framework=0 --output=./domi "
        "--soc_version=<soc_version>",
        "",
    ]
    lines += [f"  --{name:<26}{text}" for name, (_, text) in FLAGS.items()]
    return "\n".join(lines) + "\n"
