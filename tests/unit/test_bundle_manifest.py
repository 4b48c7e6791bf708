"""The manifest's canonical form, and every rule that a manifest must keep."""

import hashlib
import json
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bundles import FLOATS, make_bundle

from targets import defaults
from targets.base import BundleError, Option, Preprocess, Requirements, TensorSpec
from targets.bundle import (
    ITEM_SIZES,
    FileEntry,
    Golden,
    Manifest,
    ModelInfo,
    bundle_id,
    canonical,
    check_path,
    nbytes,
    parse_manifest,
)

texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
tensors = st.builds(
    TensorSpec,
    name=texts,
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(ITEM_SIZES)),
    layout=st.sampled_from(["", "NCHW"]),
)
options: st.SearchStrategy[Option] = st.one_of(
    texts, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest that keeps all rules."""
    inputs = tuple(draw(st.lists(tensors, min_size=1, max_size=3)))
    outputs = tuple(draw(st.lists(tensors, min_size=1, max_size=3)))
    weights = tuple(draw(st.lists(tensors, max_size=4)))
    sets = draw(st.integers(1, 2))
    files = [FileEntry("lib/a.so", draw(st.integers(0, defaults.MAX_BLOB)), draw(digests), "library")]
    golden: dict[str, list[tuple[str, ...]]] = {"golden-input": [], "golden-output": []}

    def tensor_file(path: str, role: Any, tensor: TensorSpec) -> str:
        files.append(FileEntry(path, nbytes(tensor), hashlib.sha256(path.encode()).hexdigest(), role, tensor))
        return path

    parameters = tuple(tensor_file(f"weights/{i}", "weight", w) for i, w in enumerate(weights))
    for i in range(sets):
        for role, specs in (("golden-input", inputs), ("golden-output", outputs)):
            golden[role].append(tuple(tensor_file(f"{role}/{i}/{j}", role, spec) for j, spec in enumerate(specs)))
    draw(st.randoms()).shuffle(files)
    tolerances = st.floats(0, 1e300, allow_nan=False)
    return Manifest(
        model=ModelInfo(draw(names), draw(digests), draw(names), tuple(draw(st.lists(texts, max_size=3)))),
        target=draw(names),
        toolchain=draw(st.dictionaries(texts, texts, max_size=3)),
        options=draw(st.dictionaries(texts, options, max_size=4)),
        inputs=inputs,
        outputs=outputs,
        entry="lib/a.so",
        parameters=parameters,
        engine=draw(names),
        requirements=Requirements(runtime=draw(st.dictionaries(texts, texts, max_size=2))),
        golden=Golden(
            tuple(golden["golden-input"]),
            tuple(golden["golden-output"]),
            draw(tolerances),
            draw(tolerances),
            draw(texts),
        ),
        files=tuple(files),
    )


def shuffled(value: Any, order: random.Random) -> Any:
    """The same JSON value with its objects' keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(manifests())
def test_what_is_written_is_read_again(manifest: Manifest) -> None:
    data = canonical(manifest)
    assert parse_manifest(data) == manifest
    assert canonical(parse_manifest(data)) == data
    assert bundle_id(manifest) == bundle_id(data) == hashlib.sha256(data).hexdigest()


@settings(deadline=None)
@given(manifests(), st.randoms(use_true_random=False))
def test_the_id_does_not_depend_on_the_order_of_fields(manifest: Manifest, order: random.Random) -> None:
    other = msgspec.json.encode(shuffled(msgspec.json.decode(canonical(manifest)), order))
    again = msgspec.json.decode(other, type=Manifest)
    again = msgspec.structs.replace(again, options=dict(reversed(list(again.options.items()))))
    assert bundle_id(again) == bundle_id(manifest)
    if other != canonical(manifest):
        with pytest.raises(BundleError, match="canonical"):
            parse_manifest(other)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["flip", "cut", "double", "insert"]))
def test_a_damaged_manifest_gives_an_error_and_only_a_bundle_error(place: int, value: int, how: str) -> None:
    good = canonical(make_bundle()[0])
    place %= len(good)
    data = {
        "flip": good[:place] + bytes([value]) + good[place + 1 :],
        "cut": good[:place],
        "double": good[:place] + good[place // 2 :],
        "insert": good[:place] + bytes([value]) + good[place:],
    }[how]
    try:
        manifest = parse_manifest(data)
    except BundleError:
        return
    # A change that keeps all rules makes a good manifest, of another bundle.
    assert parse_manifest(canonical(manifest)) == manifest
    assert data == good or bundle_id(data) != bundle_id(good)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'"\\ud800"', b"{}", b"1e999", b"9" * 10_000],
)
def test_what_is_no_manifest_at_all(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def test_keys_of_a_newer_version_are_read_over_and_covered_by_the_id() -> None:
    good = canonical(make_bundle()[0])
    newer = json.loads(good)
    newer["zeal"] = 1
    data = msgspec.json.encode(newer, order="sorted")
    assert parse_manifest(data) == parse_manifest(good)
    assert bundle_id(data) != bundle_id(good)


def test_another_schema_is_refused() -> None:
    other = json.loads(canonical(make_bundle()[0]))
    other["schema"] = 2
    with pytest.raises(BundleError, match="schema"):
        parse_manifest(msgspec.json.encode(other, order="sorted"))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_json_cannot_carry_has_no_canonical_form(value: float) -> None:
    with pytest.raises(BundleError):
        canonical(make_bundle(options={"share": value})[0])


def test_a_lone_surrogate_has_no_canonical_form() -> None:
    with pytest.raises(BundleError):
        canonical(make_bundle(target="\ud800")[0])


# --- Paths --------------------------------------------------------------------------------------

_safe = st.text(st.sampled_from("abcXYZ09_-é漢."), min_size=1, max_size=12).filter(
    lambda name: not name.endswith(".") and name.split(".")[0]
)


@given(st.lists(_safe, min_size=1, max_size=4).map("/".join))
def test_ordinary_paths_are_good(path: str) -> None:
    assert check_path(path) == path


@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["..", ".", "", "a", "\\", "c:", "a\0"]), max_size=5).map("/".join)
)
def test_a_path_that_is_let_through_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except BundleError as error:
        assert error.code == "bad-path"
        return
    parts = path.split("/")
    assert all(part and part not in (".", "..") for part in parts)
    assert not set(path) & set('\\:\0\n\r*?"<>|')


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "C:a", "a\0b", "a\nb", "nul", "lib/COM1.so",
     "a.", "a ", " a", "x" * 256, "/".join(["x" * 200] * 6), "/".join("abcdefghijklmnopq"), "e\u0301",
     "\u202egpj.exe", "\udc80"],
)  # fmt: skip
def test_bad_paths(path: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_path(path)
    assert caught.value.code == "bad-path"


# --- Rules --------------------------------------------------------------------------------------


def entries(**changes: Any) -> tuple[FileEntry, ...]:
    """The files of a good bundle, the first of them (a library) with changes."""
    first, *rest = make_bundle()[0].files
    return (msgspec.structs.replace(first, **changes), *rest)


def more(*added: FileEntry) -> tuple[FileEntry, ...]:
    return (*make_bundle()[0].files, *added)


def golden(**changes: Any) -> Golden:
    return msgspec.structs.replace(make_bundle()[0].golden, **changes)


def extra(path: str, **changes: Any) -> FileEntry:
    return msgspec.structs.replace(FileEntry(path, 3, "ab" * 32, "extra"), **changes)


MODEL = make_bundle()[0].model


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": entries(path="../model.so"), "entry": "../model.so"}, "leaves the bundle"),
        ({"files": entries(sha256="AB" * 32)}, "SHA-256"),
        ({"files": entries(sha256="../../x")}, "SHA-256"),
        ({"files": entries(size=-1)}, "-1 bytes"),
        ({"files": entries(size=defaults.MAX_BLOB + 1)}, "allowed are"),
        ({"files": entries(role="weight")}, "without a tensor"),
        ({"files": more(extra("LIB/model.SO"))}, "twice"),
        ({"files": more(extra("lib"))}, "file and a folder"),
        ({"files": more(extra("Lib"))}, "file and a folder"),
        ({"files": more(extra("a"), extra("b", size=4))}, "digest of another file"),
        ({"files": more(extra("a", tensor=FLOATS))}, "its tensor 24"),
        ({"files": more(extra("a", tensor=TensorSpec("t", (3,), "complex64")))}, "unknown dtype"),
        ({"files": more(extra("a", tensor=TensorSpec("t", (-3,), "int8")))}, "impossible shape"),
        ({"files": more(*(extra(f"b{i}", sha256=f"{i:064x}", size=defaults.MAX_BLOB) for i in range(5)))}, "at most"),
        ({"files": more(*(extra(str(i), sha256=f"{i:064x}") for i in range(defaults.MAX_FILES)))}, "files, at most"),
        ({"entry": "lib/none.so"}, "entry 'lib/none.so'"),
        ({"entry": "weights/0.bin"}, "not a library"),
        ({"parameters": ("weights/1.bin",)}, "parameter 'weights/1.bin'"),
        ({"parameters": ("lib/model.so",)}, "not a weight"),
        ({"inputs": ()}, "no inputs"),
        ({"inputs": (TensorSpec("data", (0, 3), "float32"),)}, "impossible shape"),
        ({"inputs": (TensorSpec("data", (2, 4), "float32"),)}, "another shape or dtype"),
        ({"inputs": (TensorSpec("data", (2, 3), "int32"),)}, "another shape or dtype"),
        ({"inputs": (FLOATS, FLOATS)}, "has 1 files"),
        ({"golden": golden(inputs=(), outputs=())}, "0 sets"),
        ({"golden": golden(inputs=(("golden/in.bin",), ("golden/in.bin",)))}, "2 sets"),
        ({"golden": golden(inputs=(("weights/0.bin",),))}, "is a weight"),
        ({"golden": golden(outputs=(("none",),))}, "golden-output 'none'"),
        ({"golden": golden(rtol=-1.0)}, "tolerance"),
        ({"golden": golden(reference="a\x1b[2J")}, "not printable"),
        ({"model": msgspec.structs.replace(MODEL, name="")}, "model name"),
        ({"model": msgspec.structs.replace(MODEL, name="a\nb")}, "model name"),
        ({"model": msgspec.structs.replace(MODEL, source_sha256="x")}, "SHA-256"),
        ({"model": msgspec.structs.replace(MODEL, labels=("\x1b]0;",))}, "not printable"),
        ({"model": msgspec.structs.replace(MODEL, preprocess=Preprocess(size=(0, 8)))}, "impossible size"),
        ({"model": msgspec.structs.replace(MODEL, preprocess=Preprocess(size=(8, 10**6)))}, "impossible size"),
        ({"model": msgspec.structs.replace(MODEL, preprocess=Preprocess(size=(8, 8), std=(1.0, 0.0)))}, "by zero"),
        ({"inputs": (TensorSpec("data", (1,) * 40, "float32"),)}, "impossible shape"),
        ({"requirements": Requirements(machine="\x1b")}, "not printable"),
        ({"target": "x" * 5000}, "too long"),
        ({"options": {"cpu": "\x07"}}, "not printable"),
    ],
)
def test_a_broken_rule_is_named(changes: dict[str, Any], says: str) -> None:
    data = canonical(make_bundle(**changes)[0])
    with pytest.raises(BundleError, match=says):
        parse_manifest(data)


def test_a_manifest_that_is_too_long() -> None:
    with pytest.raises(BundleError, match="at most"):
        parse_manifest(b" " * (defaults.MAX_MANIFEST + 1))


def test_the_reference_may_be_of_a_wider_type() -> None:
    half = TensorSpec("data", (2, 3), "float16", "NC")
    manifest, _ = make_bundle(outputs=(half,))
    assert parse_manifest(canonical(manifest)) == manifest


def test_sizes_of_tensors_are_those_of_numpy() -> None:
    import numpy as np

    for dtype, size in ITEM_SIZES.items():
        if hasattr(np, dtype) and dtype != "bool":
            assert np.dtype(dtype).itemsize == size
    assert nbytes(TensorSpec("t", (2, 3), "bfloat16")) == 12
    assert nbytes(TensorSpec("t", (), "float64")) == 8
