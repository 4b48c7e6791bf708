"""Reading ``torch.export`` archives without running anything that is in them.

``torch.export.load`` trusts its file: it unpickles what the file says is pickled, evaluates its shape expressions as
Python, executes its guards and calls any function of ``torch`` that it names. So an archive is read here as plain data
first (which needs no torch), every such place is checked, and torch is given a new archive, written from what was
checked: the graph, raw tensors, and nothing else.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.base import ModelError, TensorSpec
from targets.defaults import MAX_BLOB

MAX_MEMBERS = 100_000
MAX_GRAPH = 512 << 20

# torch._export.serde.schema.ScalarType; complex and quantised types have no place in a tensor of ours.
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"}
_DTYPES |= {12: "bool", 13: "bfloat16"}

# Operators are looked up by name and then called: only those that compute on tensors and numbers may be named.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision|fleet)\.\w+\.\w+"
    r"|torch\.sym_(int|float|not|max|min|sum|sqrt|ite)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt|prod)"
)
# Arithmetic on symbols, as sympy writes it: symbols, its and torch's functions of shapes, numbers, signs, brackets.
_SYMBOL = re.compile(r"Symbol\('([suz]\d+)'(?:, (?:positive|nonnegative|integer)=(?:True|False))*\)")
_SYMBOL_NAME = re.compile(r"[suz]\d+")
_FUNCTIONS = frozenset(
    {
        *("Integer", "Add", "Mul", "Pow", "Max", "Min", "Mod", "True", "False", "floor", "ceiling"),
        *("FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "PythonMod", "ModularIndexing", "ToFloat"),
        *("TruncToInt", "FloorToInt", "CeilToInt", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise"),
        *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
    }
)
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=!&|~]*")
_PLAIN = frozenset({"archive_version", "byteorder", ".data/version"})
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


@dataclass(frozen=True)
class Pt2:
    """A checked archive: what its program takes and gives, and a clean copy for torch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    torch_version: str
    #: Whether it uses the operators of :mod:`targets.detection`.
    detects: bool
    _members: dict[str, bytes]

    def load(self) -> Any:
        """The ``torch.export.ExportedProgram``. Raises :class:`ModelError` if torch is absent or refuses it."""
        try:
            import torch
        except ImportError:
            raise ModelError(
                "a .pt2 file is compiled with torch, which is not installed",
                hint="make setup, or pip install 'fleet-edge[tvm,torch]'; ONNX files need no torch",
            ) from None
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data in self._members.items():
                archive.writestr(f"model/{name}", data)
        buffer.seek(0)
        if self.detects:
            # Registers the operators that the program names.
            from targets.detection import operators  # noqa: F401
        try:
            return torch.export.load(buffer)
        except Exception as error:
            # Whatever torch says of a file that is well-formed by all our checks, it is about this file.
            raise ModelError(
                f"torch {torch.__version__} cannot load this program, which torch {self.torch_version or '(unknown)'} "
                f"saved: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
                hint="export it again with the torch that is installed here",
            ) from None


def read(path: Path) -> Pt2:
    """Check the archive ``path``. Needs no torch and runs nothing that is in the file.

    Raises:
        ModelError: unreadable, not an archive, of an old format, with several programs, or with anything that torch
            would have to execute to load it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            return _parse(members, path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError):
        raise ModelError(
            f"{path} is not a torch.export archive, or it is cut short",
            hint="save it again with torch.export.save(torch.export.export(model, inputs), path)",
        ) from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not a torch.export archive that can be understood: {type(error).__name__}: {str(error)[:200]}",
            hint="save it again with a newer torch",
        ) from None


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """All that torch needs, by its name inside the archive's one top folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise ModelError(f"{path}: its archive has too many members, or two of one name")
    if any(entry.file_size > MAX_BLOB for entry in entries):
        raise ModelError(f"{path}: a member of its archive is larger than {MAX_BLOB >> 30} GiB")
    # torch stores its members uncompressed; allowing little compression rules out a bomb.
    if sum(entry.file_size for entry in entries) > 4 * path.stat().st_size + (1 << 20):
        raise ModelError(f"{path}: its archive claims to hold far more than the file's size")
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) != 1 or "version" in names:
        raise ModelError(
            f"{path} is in the format of an old torch, or no torch.export archive at all",
            hint="save it again with torch 2.9 or newer",
        )
    top = tops.pop() + "/"
    members = {}
    for entry in entries:
        name = entry.filename.removeprefix(top)
        if name.startswith(("models/", "data/weights/", "data/constants/")) or name in _PLAIN:
            members[name] = archive.read(entry)
        elif name.startswith("data/aotinductor/"):
            raise ModelError(f"{path} holds machine code (AOTInductor), not a program", hint="use torch.export.save")
    return members


def _parse(members: dict[str, bytes], path: Path) -> Pt2:
    models = [name for name in members if name.startswith("models/")]
    if not models:
        raise ModelError(f"{path} holds no exported program", hint="use torch.export.save")
    if len(models) > 1:
        raise ModelError(
            f"{path} holds {len(models)} programs ({', '.join(sorted(Path(m).stem for m in models))}); one is needed",
            hint="save each program to a file of its own",
        )
    if members.get("byteorder", b"little") != b"little":
        raise ModelError(f"{path} was saved on a big-endian machine")
    stem = Path(models[0]).stem
    if len(members[models[0]]) > MAX_GRAPH:
        raise ModelError(f"{path}: its graph is larger than {MAX_GRAPH >> 20} MiB")
    program = json.loads(members[models[0]])
    _check_program(program, path)

    clean = {"archive_format": b"pt2", "byteorder": b"little"}
    clean |= {name: members[name] for name in ("archive_version", ".data/version")}
    # Without sample inputs: they are pickled, and torch wants them only to show them.
    clean |= {"models/model.json": json.dumps(program).encode(), "data/sample_inputs/model.pt": b""}
    for kind, config in (("weights", "_weights_config.json"), ("constants", "_constants_config.json")):
        payloads = json.loads(members[f"data/{kind}/{stem}{config}"])["config"]
        clean[f"data/{kind}/model{config}"] = json.dumps({"config": payloads}).encode()
        for name, payload in payloads.items():
            if payload["use_pickle"] or not payload.get("tensor_meta"):
                raise ModelError(
                    f"{path}: '{name}' is pickled, and unpickling would run code from the file",
                    hint="export a model whose weights and constants are plain tensors",
                )
            _check_expressions(payload, path)
            member = f"data/{kind}/{payload['path_name']}"
            clean[member] = members[member]
    taken, given = _signature(program["graph_module"], path)
    detects = b'"torch.ops.fleet.' in members[models[0]]
    return Pt2(taken, given, str(program.get("torch_version", "")), detects, clean)


def _check_program(program: dict[str, Any], path: Path) -> None:
    """Refuse all that torch would execute; drop what is only there to be executed or shown."""
    program["guards_code"] = []
    _check_expressions(program, path)
    for symbol in program.get("range_constraints", {}):
        _check_expression(symbol, path)
    pending = [program["graph_module"]["graph"]]
    while pending:
        graph = pending.pop()
        for node in graph["nodes"]:
            if not _OPERATOR.fullmatch(node["target"]):
                raise ModelError(f"operator {node['target']} (node '{node.get('name') or '?'}') cannot be compiled")
            node["metadata"] = {}
            if any("as_graph" in argument["arg"] for argument in node["inputs"]):
                raise ModelError(f"operator {node['target']} holds a graph of its own, which cannot be compiled")
    for call in program["graph_module"].get("module_call_graph") or []:
        signature = call.get("signature") or {}
        for tree in ("in_spec", "out_spec"):
            if signature.get(tree):
                _check_tree(json.loads(signature[tree]), path)


def _check_tree(tree: Any, path: Path) -> None:
    """Python types of the call's arguments: built-in containers only (a default-dict's factory would be imported)."""
    if isinstance(tree, list):
        for part in tree:
            _check_tree(part, path)
    elif isinstance(tree, dict):
        if "type" in tree and tree["type"] not in _TREE_TYPES:
            raise ModelError(
                f"{path}: its arguments or results are packed in a {tree['type']}",
                hint="export a model that takes and gives tensors, tuples, lists or dicts",
            )
        for part in tree.get("children_spec", ()):
            _check_tree(part, path)


def _check_expressions(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "expr_str":
                _check_expression(part, path)
            else:
                _check_expressions(part, path)
    elif isinstance(value, list):
        for part in value:
            _check_expressions(part, path)


def _check_expression(text: str, path: Path) -> None:
    """torch hands these to sympy, which evaluates them as Python."""
    plain = _SYMBOL.sub(r"\1", text) if len(text) <= 2000 else "'"
    known = all(name in _FUNCTIONS or _SYMBOL_NAME.fullmatch(name) for name in re.findall(r"[A-Za-z_]\w*", plain))
    if not known or not _EXPRESSION.fullmatch(plain):
        raise ModelError(f"{path}: the shape expression {text[:80]!r} is not arithmetic on dimensions")


def _signature(module: dict[str, Any], path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    tensors = module["graph"]["tensor_values"]
    signature = module["signature"]
    taken, given = [], []
    for spec in signature["input_specs"]:
        if "user_input" in spec:
            argument = spec["user_input"]["arg"]
            if "as_tensor" not in argument:
                raise ModelError(
                    f"{path}: an input is {next(iter(argument))}, no tensor", hint="export with tensors only"
                )
            taken.append(_tensor(argument["as_tensor"]["name"], tensors))
        elif not {"parameter", "buffer", "tensor_constant"} & spec.keys():
            raise ModelError(f"{path}: it takes a {next(iter(spec))}, which cannot be compiled")
    for spec in signature["output_specs"]:
        if "user_output" not in spec:
            raise ModelError(
                f"{path}: it changes its own state ({next(iter(spec))})", hint="call model.eval() before torch.export"
            )
        argument = spec["user_output"]["arg"]
        if "as_tensor" not in argument:
            raise ModelError(f"{path}: an output is {next(iter(argument))}, no tensor")
        given.append(_tensor(argument["as_tensor"]["name"], tensors))
    return tuple(taken), tuple(given)


def _tensor(name: str, tensors: dict[str, Any]) -> TensorSpec:
    meta = tensors[name]
    if meta["dtype"] not in _DTYPES:
        raise ModelError(f"tensor '{name}' has an element type that cannot be compiled ({meta['dtype']})")
    return TensorSpec(name, tuple(int(size.get("as_int", -1)) for size in meta["sizes"]), _DTYPES[meta["dtype"]])
