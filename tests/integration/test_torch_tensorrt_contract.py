"""Whether torch_tensorrt is what `targets.jetson.dialects` says: held against the source of its released wheels.

Nothing of torch_tensorrt is imported: it needs a GPU and libraries that PyPI does not have.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from torch_tensorrt_wheels import WHEELS, Package

from targets.jetson import dialects

REPOSITORY = Path(dialects.__file__).resolve().parents[2]
CALLER = "targets/jetson/engines/trt.py"
INTERPRETER = "dynamo/conversion/_TRTInterpreter.py"
COMPILE = "dynamo.compile"

#: What each setting is when it is not given, and what it does: words that stand together in one statement of the part
#: that speaks with TensorRT, or in the file that is named.
SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "disable_tf32": ("False", INTERPRETER, ("settings.disable_tf32", "clear_flag(trt.BuilderFlag.TF32)")),
    "workspace_size": ("0", INTERPRETER, ("settings.workspace_size", "trt.MemoryPoolType.WORKSPACE")),
    "optimization_level": ("None", INTERPRETER, ("settings.optimization_level", "builder_optimization_level")),
    "num_avg_timing_iters": ("1", INTERPRETER, ("settings.num_avg_timing_iters", "avg_timing_iterations")),
    "version_compatible": ("False", INTERPRETER, ("settings.version_compatible", "BuilderFlag.VERSION_COMPATIBLE")),
    "hardware_compatible": ("False", INTERPRETER, ("settings.hardware_compatible", "HardwareCompatibilityLevel")),
    "timing_cache_path": ("*", INTERPRETER, ("settings.timing_cache_path", "cache")),
    "truncate_double": (
        "False",
        "dynamo/conversion/converter_utils.py",
        ("compilation_settings.truncate_double", "np.float32"),
    ),
    "min_block_size": ("5", "dynamo/_compiler.py", ("settings.min_block_size", "partition")),
    "require_full_compilation": ("False", "dynamo/_compiler.py", ("settings.require_full_compilation", "supported")),
    "cache_built_engines": ("False", "dynamo/_compiler.py", ("cache_built_engines or", "DiskEngineCache")),
    "reuse_cached_engines": ("False", "dynamo/_compiler.py", ("or reuse_cached_engines", "DiskEngineCache")),
    "device": ("None", "dynamo/_compiler.py", ("device", "to_torch_tensorrt_device(device)")),
    "arg_inputs": ("None", "dynamo/_compiler.py", ("arg_inputs", "prepare_inputs(arg_inputs)")),
    "enabled_precisions": (
        "{dtype.f32}",
        INTERPRETER,
        ("dtype.float16 in self.compilation_settings.enabled_precisions", "trt.BuilderFlag.FP16"),
    ),
    "use_explicit_typing": ("False", INTERPRETER, ("settings.use_explicit_typing", "STRONGLY_TYPED")),
    "enable_autocast": ("False", "dynamo/lowering/passes/rule_based_autocast.py", ("settings.enable_autocast",)),
    "autocast_low_precision_type": (
        "None",
        "dynamo/lowering/passes/rule_based_autocast.py",
        ("settings.autocast_low_precision_type",),
    ),
}
#: Arguments that are no setting of the compiler's.
OURS = frozenset({"arg_inputs"})


@cache
def package(version: str) -> Package:
    return Package(version)


@pytest.fixture(params=list(WHEELS))
def release(request: pytest.FixtureRequest) -> tuple[Package, dialects.Dialect]:
    found = package(request.param)
    return found, dialects.choose(found.version)


def test_the_wheels_are_the_dialects_ends() -> None:
    versions = [dialects.version(version) for version in WHEELS]
    for dialect in dialects.DIALECTS:
        assert dialect.first in versions
        assert dialect.last in versions or dialect.last == (0, 0)
    assert dialects.choose("2.8.0") is dialects.choose("2.9.1+jp6") is dialects.WEAK
    assert dialects.choose("2.10.0") is dialects.choose("2.14.0") is dialects.STRONG
    with pytest.raises(ValueError, match=r"2\.7\.0 is older than 2\.8"):
        dialects.choose("2.7.0")


def test_every_setting_is_known_to_this_test() -> None:
    listed = {name for dialect in dialects.DIALECTS for name in dialect.callables[COMPILE]}
    assert listed == set(SETTINGS)


Release = tuple[Package, dialects.Dialect]


def test_arguments_of_compile_are_its_own(release: Release) -> None:
    """Each is a named parameter, with the default that is known; none is swallowed by ``**kwargs`` or deprecated."""
    wheel, dialect = release
    function = wheel.function(COMPILE)
    parameters = {each.name: each for each in wheel.parameters(function)}
    listed = dialect.callables[COMPILE]
    assert listed <= set(parameters), f"swallowed: {sorted(listed - set(parameters))}"
    for name in listed:
        wanted = "True" if (name, dialect.strong) == ("use_explicit_typing", True) else SETTINGS[name][0]
        assert wanted in ("*", parameters[name].default), f"{name} is {parameters[name].default} when it is not given"
    assert listed <= wheel.reads(function)
    assert not listed & wheel.keys(function)
    if not dialect.strong or wheel.version == "2.14.0":
        assert not listed & wheel.deprecated(function)
    first = wheel.parameters(function)[0]
    assert (first.name, first.annotation) == ("exported_program", "ExportedProgram")


def test_arguments_become_settings_that_are_read(release: Release) -> None:
    wheel, dialect = release
    options = wheel.options(wheel.function(COMPILE))
    for name in dialect.callables[COMPILE] - OURS:
        assert name in wheel.settings, f"{name} is no setting"
        assert name in {node.id for node in ast.walk(options[name]) if isinstance(node, ast.Name)}
        assert name in wheel.settings_read, f"nothing reads {name}"


def test_settings_mean_what_they_are_used_for(release: Release) -> None:
    wheel, dialect = release
    for name in dialect.callables[COMPILE]:
        _, path, words = SETTINGS[name]
        assert wheel.statements(path, *words), f"{path} of {wheel.version} has no statement with {words}"


def test_weak_typing_takes_enabled_precisions() -> None:
    for version in ("2.8.0", "2.9.0"):
        wheel = package(version)
        (flag,) = wheel.statements(INTERPRETER, "enabled_precisions", "trt.BuilderFlag.FP16")
        assert flag.startswith("if dtype.float16 in self.compilation_settings.enabled_precisions:")
        (flag,) = wheel.statements(INTERPRETER, "enabled_precisions", "trt.BuilderFlag.INT8")
        assert flag.startswith("if dtype.int8 in self.compilation_settings.enabled_precisions:")
        (typed,) = wheel.statements(INTERPRETER, "use_explicit_typing", "STRONGLY_TYPED")
        assert typed.startswith("if compilation_settings.use_explicit_typing:")
        # Not given, it is off; given together with a second precision, compile refuses both.
        assert wheel.settings["use_explicit_typing"] == "False"
        assert "enable_autocast" not in wheel.settings


def test_from_2_10_on_enabled_precisions_are_refused() -> None:
    """Typing is strong unless it is switched off, and a second precision then is an error."""
    wheel = package("2.10.0")
    assert wheel.settings["use_explicit_typing"] == "True"
    assert wheel.statements("dynamo/_compiler.py", "if use_explicit_typing:", "len(enabled_precisions) != 1", "raise")


def test_in_2_14_enabled_precisions_are_ignored() -> None:
    """No parameter, no setting, and no code on the way of ``dynamo.compile`` knows the name; ``**kwargs`` takes it."""
    wheel = package("2.14.0")
    function = wheel.function(COMPILE)
    for name in ("enabled_precisions", "use_explicit_typing"):
        assert name not in {each.name for each in wheel.parameters(function)}
        assert name not in wheel.settings and name not in wheel.settings_read
        assert name not in wheel.keys(function)
        assert name not in dialects.choose(wheel.version).callables[COMPILE] | dialects.STRONG.callables["save"]
    assert function.args.kwarg is not None
    # What says the precision instead: the network is strongly typed whatever is asked for.
    assert not wheel.statements(INTERPRETER, "trt.BuilderFlag.FP16")
    assert wheel.statements(INTERPRETER, "STRONGLY_TYPED")
    conditions = [node for node in ast.walk(wheel.file(INTERPRETER)) if isinstance(node, ast.If)]
    # Another library, for GPUs of desktops, has nothing else.
    assert {ast.unparse(node.test) for node in conditions if "STRONGLY_TYPED" in ast.unparse(node)} == {
        "not ENABLED_FEATURES.tensorrt_rtx"
    }


def test_settings_that_only_torch_compile_reads_are_not_listed(release: Release) -> None:
    wheel, dialect = release
    assert "pass_through_build_failures" not in wheel.settings_read
    assert "pass_through_build_failures" not in dialect.callables[COMPILE]


def test_inputs_take_their_keywords(release: Release) -> None:
    """``Input`` has ``**kwargs`` alone: its keywords are those that it looks up."""
    wheel, dialect = release
    method = wheel.method("Input", "__init__")
    source = ast.unparse(method)
    for name in dialect.callables["Input"]:
        assert name in wheel.keys(method)
        assert f"'{name}' in kwargs" in source or f"kwargs['{name}']" in source or f"kwargs.get('{name}'" in source


def test_saving_and_loading(release: Release) -> None:
    wheel, dialect = release
    save = {each.name: each for each in wheel.parameters(wheel.function("save"))}
    assert dialect.callables["save"] <= set(save)
    assert [*save][:2] == ["module", "file_path"]
    assert dialect.callables["save"] <= wheel.reads(wheel.function("save"))
    source = ast.unparse(wheel.function("save"))
    assert "'exported_program'" in source and re.search(r"if retrace|not retrace", source)
    assert "torch.export.save" in source
    # What torch can read without running it.
    assert save["pickle_protocol"].default == "2"
    load = wheel.function("load")
    assert wheel.parameters(load)[0].name == "file_path"
    assert "torch.export.load" in ast.unparse(load)


def test_classes_and_their_methods(release: Release) -> None:
    wheel, dialect = release
    for name, methods in dialect.classes.items():
        assert methods <= wheel.methods(name), f"{name} of {wheel.version}"
        for method in methods:
            assert wheel.parameters(wheel.method(name, method))[1:] == []
    known = {"TorchTensorRTModule", "PythonTorchTensorRTModule"}
    there = {name for name in known if wheel.find(f"dynamo.runtime.{name}")}
    # A module of a class that is not listed would not be counted as an engine. The one of Python's runtime went with
    # 2.14, and was never made unless it was asked for, or the other was not there.
    assert {f"dynamo.runtime.{name}" for name in there} - set(dialect.classes) == (
        {"dynamo.runtime.PythonTorchTensorRTModule"} if wheel.version == "2.10.0" else set()
    )
    assert wheel.settings.get("use_python_runtime", "False") == "False"


def test_precisions_are_told_by_listed_keywords() -> None:
    for dialect in dialects.DIALECTS:
        for told in dialect.precisions.values():
            assert told <= dialect.callables[COMPILE]


# --- Our own code -------------------------------------------------------------------------------


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("agent", "controller", "targets", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text())


def _imports(module: ast.Module) -> bool:
    names = [alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    names += [
        str(node.args[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__", "find_spec"))
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    return any(name.split(".")[0] == "torch_tensorrt" for name in names)


def test_one_module_alone_calls_torch_tensorrt() -> None:
    assert [name for name, module in _sources() if _imports(module)] == [CALLER]


@pytest.fixture(scope="module")
def caller() -> ast.Module:
    return ast.parse((REPOSITORY / CALLER).read_text())


def _calls(module: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _uses(module: ast.Module) -> set[str]:
    """Dotted names that are taken of the library: ``library.dynamo.compile`` is ``dynamo.compile``."""
    found = set()
    inner = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and (id(node) not in inner or isinstance(node.value, ast.Call)):
            root, *names = ast.unparse(node).split(".")
            if all(name.isidentifier() for name in names) and root in ("library", "_library()", "torch_tensorrt"):
                found.add(".".join(names))
    return found


def test_nothing_is_used_that_is_not_listed(caller: ast.Module) -> None:
    listed = {name for dialect in dialects.DIALECTS for name in dialect.callables}
    assert _uses(caller) - {"__version__"} == listed
    # Classes are named by the table itself.
    assert any(name == "_named" and ast.unparse(call.args[1]) == "name" for name, call in _calls(caller))


def _keys(module: ast.AST, variable: str) -> set[str]:
    """Keys that a function ever puts into a dict."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == variable and isinstance(node.value, ast.Dict):
                found |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
                assert None not in node.value.keys, "a dict of another's keys"
            if isinstance(target, ast.Subscript) and ast.unparse(target.value) == variable:
                found.add(ast.literal_eval(target.slice))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{variable}.update":
            assert not node.args
            found |= {str(keyword.arg) for keyword in node.keywords}
    return found


def _function(module: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_nothing_is_passed_that_is_not_listed(caller: ast.Module) -> None:
    """All keywords are literal, and all functions are called through the check of names against table and signature."""
    build, keywords, inputs = (_function(caller, name) for name in ("build", "keywords", "_input"))
    compile_keys = _keys(keywords, "told")
    assert compile_keys == set().union(*(dialect.callables[COMPILE] for dialect in dialects.DIALECTS)) & compile_keys
    assert {"arg_inputs", "workspace_size", "disable_tf32"} <= compile_keys
    assert _keys(inputs, "told") <= set.intersection(*(set(d.callables["Input"]) for d in dialects.DIALECTS))
    told = dict(_calls(build))
    assert [ast.unparse(keyword) for keyword in told["compile_program"].keywords] == ["**told"]
    saved = {str(keyword.arg) for keyword in told["save"].keywords}
    for dialect in dialects.DIALECTS:
        assert saved <= dialect.callables["save"]
    # No function of the library is called but through the check, or with a path alone.
    direct = [name for name, _ in _calls(caller) if name.startswith(("library.", "_library().", "torch_tensorrt."))]
    assert sorted(set(direct)) == [
        "_library().load",
        "_library().load(str(Path(work.folder, _FILE))).module",
        "library.Input",
    ]
    checked = {ast.unparse(call.args[0]) for name, call in _calls(caller) if name == "_checked"}
    assert checked == {"library.dynamo.compile", "library.save"}


def test_each_dialect_is_told_its_own_precisions(caller: ast.Module) -> None:
    """Keywords of one dialect stand in the branch of that dialect."""
    weak = dialects.WEAK.callables[COMPILE] - dialects.STRONG.callables[COMPILE]
    strong = dialects.STRONG.callables[COMPILE] - dialects.WEAK.callables[COMPILE]
    assert weak == {"enabled_precisions", "use_explicit_typing"} and strong
    (branch,) = [
        node
        for node in _function(caller, "keywords").body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "not dialect.strong"
    ]
    assert _keys(ast.Module(branch.body, []), "told") == weak
    assert _keys(ast.Module(branch.orelse, []), "told") == strong
