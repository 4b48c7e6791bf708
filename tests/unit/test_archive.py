"""Bundles as one file: what goes in comes out, and what was tampered with does not get in."""

import functools
import struct
import tempfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bundles import blob, make_bundle, sha256

from targets import archive as archive_module
from targets.archive import read_archive, write_archive
from targets.base import BundleError, FleetError
from targets.blobs import BlobDir
from targets.bundle import FileEntry, Manifest, bundle_id, canonical
from targets.keys import Keys, Signature, verify


def filled(root: Path, contents: dict[str, bytes]) -> BlobDir:
    blobs = BlobDir(root)
    for data in contents.values():
        blobs.add_bytes(data)
    return blobs


def held(root: Path) -> list[Path]:
    """Every file and temporary folder below a blob directory."""
    return [path for path in root.rglob("*") if path.is_file() or path.name.startswith(".")]


def refusal(path: Path, root: Path) -> BundleError:
    """The error that reading gives; nothing may be left behind by it."""
    with pytest.raises(BundleError) as caught:
        read_archive(path, BlobDir(root))
    assert held(root) == []
    assert path.name in caught.value.message
    return caught.value


def test_a_bundle_comes_out_as_it_went_in(tmp_path: Path) -> None:
    manifest, contents = make_bundle(library_size=3_000_000)
    keys = Keys(tmp_path / "keys")
    signature = keys.sign(bundle_id(manifest))
    source = filled(tmp_path / "source", contents)
    out = tmp_path / "net.fleet"
    write_archive(out, canonical(manifest), signature, source)
    there = BlobDir(tmp_path / "there")
    assert read_archive(out, there) == (manifest, signature)
    verify(bundle_id(manifest), signature, {keys.key_id: keys.signing_public})
    assert {digest: there.path(digest).read_bytes() for digest in there} == contents
    # Once more into a place that has it all already, and to the same bytes.
    assert read_archive(out, source) == (manifest, signature)
    write_archive(tmp_path / "again.fleet", canonical(manifest), signature, there)
    assert (tmp_path / "again.fleet").read_bytes() == out.read_bytes()
    assert [path.name for path in tmp_path.glob("*")].count("net.fleet") == 1
    assert not list(tmp_path.glob(".*"))


def test_the_signature_may_be_absent(tmp_path: Path) -> None:
    manifest, contents = make_bundle()
    write_archive(tmp_path / "a.fleet", canonical(manifest), None, filled(tmp_path / "s", contents))
    assert read_archive(tmp_path / "a.fleet", BlobDir(tmp_path / "t")) == (manifest, None)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.binary(max_size=3000), max_size=6), st.none() | st.binary(max_size=80))
def test_any_contents_survive(extras: list[bytes], signed: bytes | None) -> None:
    manifest, contents = make_bundle()
    more = tuple(FileEntry(f"extra/{i}", len(data), sha256(data), "extra") for i, data in enumerate(extras))
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, *more))
    contents |= {sha256(data): data for data in extras}
    signature = None if signed is None else Signature("ab" * 8, signed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_archive(root / "a", canonical(manifest), signature, filled(root / "s", contents))
        there = BlobDir(root / "t")
        assert read_archive(root / "a", there) == (manifest, signature)
        assert {digest: there.path(digest).read_bytes() for digest in there} == contents


@functools.cache
def good_archive() -> tuple[bytes, Manifest, Signature]:
    manifest, contents = make_bundle(library_size=300)
    signature = Signature("ab" * 8, b"\x01" * 64)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_archive(root / "a", canonical(manifest), signature, filled(root / "s", contents))
        return (root / "a").read_bytes(), manifest, signature


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_a_bundle_error_or_harmless(data: st.DataObject) -> None:
    good, manifest, signature = good_archive()
    damaged = bytearray(good)
    # The directory at the end steers the reader, so half of the damage goes there.
    start = data.draw(st.sampled_from([0, good.index(b"PK\x01\x02")]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(start, len(good) - 1))
        match data.draw(st.sampled_from(["bit", "byte", "cut", "insert", "word"])):
            case "bit" if place < len(damaged):
                damaged[place] ^= 1 << data.draw(st.integers(0, 7))
            case "byte" if place < len(damaged):
                damaged[place] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[place : place + data.draw(st.integers(1, 200))]
            case "insert":
                damaged[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "word":
                damaged[place : place + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1])))
    with tempfile.TemporaryDirectory() as folder:
        path, blobs = Path(folder) / "a.fleet", BlobDir(Path(folder) / "blobs")
        path.write_bytes(damaged)
        try:
            read, read_signature = read_archive(path, blobs)
        except BundleError as error:
            assert "a.fleet" in error.message
            assert held(blobs.root) == []
        else:
            assert read == manifest
            # The signature is for `verify` to judge; if it is still there, it may be a wrong one.
            assert read_signature is None or isinstance(read_signature, type(signature))
            for digest in blobs:
                assert sha256(blobs.path(digest).read_bytes()) == digest


def rewritten(path: Path, members: list[tuple[str, bytes]], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return path


def members_of_good(seed: int = 0) -> list[tuple[str, bytes]]:
    manifest, contents = make_bundle(seed)
    return [("manifest.json", canonical(manifest)), *((f"blobs/{d}", c) for d, c in contents.items())]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "blobs/../../evil", "x", "blobs/", f"blobs/{'ab' * 32}"])
def test_a_member_that_the_manifest_does_not_name(tmp_path: Path, name: str) -> None:
    path = rewritten(tmp_path / "a.fleet", [*members_of_good(), (name, b"x")])
    assert "does not name" in refusal(path, tmp_path / "in" / "blobs").message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fleet", "in"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.fleet", [*members_of_good(), members_of_good()[1]])
    assert "twice" in refusal(path, tmp_path / "blobs").message


def test_a_blob_that_is_missing_wrong_or_of_another_size(tmp_path: Path) -> None:
    good = members_of_good()
    name, contents = good[1]
    path = tmp_path / "a.fleet"
    assert "lacks" in refusal(rewritten(path, [good[0], *good[2:]]), tmp_path / "b").message
    wrong = refusal(rewritten(path, [good[0], (name, contents[:-1] + b"!"), *good[2:]]), tmp_path / "b")
    assert wrong.code == "bad-digest"
    assert (
        "bytes, not" in refusal(rewritten(path, [good[0], (name, contents + b"!"), *good[2:]]), tmp_path / "b").message
    )


def test_a_wrong_blob_is_refused_even_where_the_right_one_is_known(tmp_path: Path) -> None:
    _, contents = make_bundle()
    blobs = filled(tmp_path / "b", contents)
    good = members_of_good()
    name, data = good[1]
    path = rewritten(tmp_path / "a.fleet", [good[0], (name, data[:-1] + b"!"), *good[2:]])
    with pytest.raises(BundleError):
        read_archive(path, blobs)
    assert {digest: blobs.path(digest).read_bytes() for digest in blobs} == contents


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    good = members_of_good()
    bomb = (good[1][0], bytes(200_000_000))
    path = rewritten(tmp_path / "a.fleet", [good[0], bomb, *good[2:]])
    # Its directory lies about the size, so that only unpacking would show it.
    data = path.read_bytes().replace(struct.pack("<I", len(bomb[1])), struct.pack("<I", len(good[1][1])))
    path.write_bytes(data)
    refusal(path, tmp_path / "b")
    big = rewritten(tmp_path / "c.fleet", [("manifest.json", b" " * 50_000_000)])
    assert "more than" in refusal(big, tmp_path / "b").message


def test_members_that_overlap(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.fleet", members_of_good(), method=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    # Every entry of the directory claims more compressed bytes than the file has.
    place = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, place + 20, len(data) + 1)
    path.write_bytes(data)
    assert "overlap" in refusal(path, tmp_path / "b").message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    path = rewritten(tmp_path / "a.fleet", members_of_good(), method=method)
    assert "in a way" in refusal(path, tmp_path / "b").message


@pytest.mark.parametrize("contents", [b"", b"PK", b"\x7fELF", b"PK\x05\x06" + bytes(18), b"x" * 1000])
def test_what_is_no_archive(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "a.fleet"
    path.write_bytes(contents)
    refusal(path, tmp_path / "b")


@pytest.mark.parametrize("signature", [b"", b"{}", b'{"key_id":"a","signature":"*"}', b"[1]", b"[" * 4000, b" " * 9000])
def test_a_signature_that_is_none(tmp_path: Path, signature: bytes) -> None:
    refusal(rewritten(tmp_path / "a.fleet", [*members_of_good(), ("signature.json", signature)]), tmp_path / "b")


def test_a_manifest_of_a_newer_version(tmp_path: Path) -> None:
    good = members_of_good()
    newer = msgspec.json.encode({**msgspec.json.decode(good[0][1]), "zeal": 1}, order="sorted")
    error = refusal(rewritten(tmp_path / "a.fleet", [(good[0][0], newer), *good[1:]]), tmp_path / "b")
    assert error.hint == "update fleet"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no such file") as caught:
        read_archive(tmp_path / "a.fleet", BlobDir(tmp_path / "b"))
    assert caught.value.code == "no-such-file"
    with pytest.raises(FleetError, match="is a directory"):
        read_archive(tmp_path, BlobDir(tmp_path / "b"))


def test_an_archive_that_cannot_be_made_leaves_what_was_there(tmp_path: Path) -> None:
    manifest, contents = make_bundle()
    out = tmp_path / "net.fleet"
    out.write_bytes(b"before")
    contents.pop(manifest.files[0].sha256)
    with pytest.raises(BundleError) as caught:
        write_archive(out, canonical(manifest), None, filled(tmp_path / "s", contents))
    assert caught.value.code == "missing-blobs"
    with pytest.raises(FleetError):
        write_archive(tmp_path / "none" / "net.fleet", canonical(make_bundle()[0]), None, BlobDir(tmp_path / "s"))
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.fleet", "s"]


def test_a_bundle_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rewritten(tmp_path / "a.fleet", members_of_good())

    class Usage:
        free = 5000

    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(FleetError) as caught:
        read_archive(path, BlobDir(tmp_path / "b"))
    assert caught.value.code == "disk-full"
    assert held(tmp_path / "b") == []


def test_large_blobs_are_copied_in_pieces(tmp_path: Path) -> None:
    manifest, contents = make_bundle()
    big = blob(9, 5_000_001)
    entry = FileEntry("extra/big", len(big), sha256(big), "extra")
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, entry))
    write_archive(tmp_path / "a", canonical(manifest), None, filled(tmp_path / "s", {**contents, entry.sha256: big}))
    there = BlobDir(tmp_path / "t")
    read_archive(tmp_path / "a", there)
    assert there.path(entry.sha256).read_bytes() == big
