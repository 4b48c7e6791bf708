"""Key pairs on disk, and signatures over a bundle's id."""

import multiprocessing
import os
from pathlib import Path

import pytest
import zmq

from targets.base import BundleError, FleetError
from targets.keys import Keys, Signature, key_id, verify

BUNDLE = "ab" * 32


def test_keys_are_made_once_and_found_again(tmp_path: Path) -> None:
    first = Keys(tmp_path / "home" / "keys")
    again = Keys(tmp_path / "home" / "keys")
    assert first.curve_public == again.curve_public
    assert first.curve_secret == again.curve_secret
    assert first.signing_public == again.signing_public
    assert zmq.curve_public(first.curve_secret) == first.curve_public
    assert (first.root / "curve.pub").read_bytes().strip() == first.curve_public
    assert (first.root / "signing.pub").read_text().strip() == first.signing_public
    assert key_id(bytes.fromhex(first.signing_public)) == first.key_id
    assert Keys(tmp_path / "other").curve_public != first.curve_public


def test_only_the_owner_can_read_secrets(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys = Keys(tmp_path / "keys")
        secrets = {keys.curve_secret, keys.sign(BUNDLE).signature}
    finally:
        os.umask(before)
    assert len(secrets) == 2
    assert keys.root.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in keys.root.iterdir()} == {
        "curve.key": 0o600,
        "curve.pub": 0o644,
        "signing.key": 0o600,
        "signing.pub": 0o644,
    }


def test_nothing_prints_a_secret(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    signing = (keys.sign(BUNDLE), (tmp_path / "signing.key").read_text().strip())[1]
    for text in (repr(keys), str(keys)):
        assert keys.curve_secret.decode() not in text
        assert signing not in text


def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    assert Keys(tmp_path).curve_secret
    (tmp_path / "curve.key").chmod(0o640)
    with pytest.raises(FleetError, match="can be read by others") as caught:
        _ = Keys(tmp_path).curve_secret
    assert caught.value.code == "bad-key"


@pytest.mark.parametrize("name", ["curve.key", "signing.key"])
@pytest.mark.parametrize("contents", [b"", b"abc", b"\xff" * 40, b"0" * 63, b"~" * 40])
def test_a_damaged_key_is_an_error_and_is_not_replaced(tmp_path: Path, name: str, contents: bytes) -> None:
    (tmp_path / name).write_bytes(contents)
    (tmp_path / name).chmod(0o600)
    keys = Keys(tmp_path)
    with pytest.raises(FleetError, match="holds no key") as caught:
        _ = keys.curve_public if name == "curve.key" else keys.signing_public
    assert caught.value.code == "bad-key"
    assert contents.decode("latin1") == "" or contents.decode("latin1") not in str(caught.value)
    assert (tmp_path / name).read_bytes() == contents


def test_a_public_key_that_does_not_fit_is_written_anew(tmp_path: Path) -> None:
    public = Keys(tmp_path).curve_public
    (tmp_path / "curve.pub").write_text("something else")
    assert Keys(tmp_path).curve_public == public
    assert (tmp_path / "curve.pub").read_bytes().strip() == public


def _publics(root: str) -> tuple[bytes, str]:
    keys = Keys(Path(root))
    return keys.curve_public, keys.signing_public


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_publics, [str(tmp_path / "keys")] * 6, chunksize=1))) == 1
    assert len(list((tmp_path / "keys").iterdir())) == 4


def test_a_signature_holds_for_its_bundle_and_key_only(tmp_path: Path) -> None:
    keys, other = Keys(tmp_path / "a"), Keys(tmp_path / "b")
    signature = keys.sign(BUNDLE)
    trusted = {keys.key_id: keys.signing_public}
    verify(BUNDLE, signature, trusted)
    verify(BUNDLE, signature, {**trusted, other.key_id: other.signing_public})

    def code(bundle: str, signature: Signature, trusted: dict[str, str]) -> str:
        with pytest.raises(FleetError) as caught:
            verify(bundle, signature, trusted)
        return caught.value.code

    assert code("cd" * 32, signature, trusted) == "bad-signature"
    damaged = bytes([signature.signature[0] ^ 1]) + signature.signature[1:]
    assert code(BUNDLE, Signature(keys.key_id, damaged), trusted) == "bad-signature"
    assert code(BUNDLE, Signature(keys.key_id, b""), trusted) == "bad-signature"
    assert code(BUNDLE, Signature(keys.key_id, other.sign(BUNDLE).signature), trusted) == "bad-signature"
    assert code(BUNDLE, signature, {other.key_id: other.signing_public}) == "untrusted-key"
    assert code(BUNDLE, signature, {}) == "untrusted-key"
    assert code(BUNDLE, signature, {keys.key_id: "no hex"}) == "bad-key"
    with pytest.raises(BundleError):
        verify(BUNDLE, Signature(other.key_id, signature.signature), trusted)
