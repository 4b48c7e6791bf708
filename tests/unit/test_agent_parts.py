"""Parts of the agent that need no process: the golden comparison, tensors, faults, keys, logs, the command line."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent import main as agent_main
from agent.admission import Admission, TrustedKeys
from agent.config import Home, read_info
from agent.faults import KINDS, Faults, FaultyRunner, perturbed
from agent.golden import compare
from agent.logs import LogBook
from agent.tensors import dtype_of, from_bytes, spec_of, to_bytes
from agent.worker_calls import unmet_version
from targets.base import FleetError, TensorSpec
from targets.bundle import ITEM_SIZES
from targets.keys import Keys

Y = TensorSpec("y", (2,), "float32")


def compared(output: Any, reference: Any, **bounds: float) -> tuple[float, str]:
    return compare([np.asarray(output)], [np.asarray(reference)], [Y], **{"rtol": 0.0, "atol": 0.0, **bounds})


# --- Golden -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "reference", "bounds", "passes"),
    [
        ([1.0, 2.0], [1.0, 2.0], {}, True),
        ([1.0, 2.1], [1.0, 2.0], {"atol": 0.11}, True),
        ([1.0, 2.1], [1.0, 2.0], {"atol": 0.09}, False),
        ([1.0, 101.0], [1.0, 100.0], {"rtol": 0.011}, True),
        # The bound is relative to the reference, not to the output.
        ([0.0, 110.0], [0.0, 100.0], {"rtol": 0.095}, False),
        ([math.inf, -math.inf], [math.inf, -math.inf], {}, True),
        ([math.inf, 0.0], [-math.inf, 0.0], {"rtol": 1.0, "atol": 1e9}, False),
        ([1.0, 0.0], [math.inf, 0.0], {"atol": 1e9}, False),
        ([math.nan, 0.0], [math.nan, 0.0], {"atol": 1e9}, False),
        ([math.nan, 0.0], [0.0, 0.0], {"atol": math.inf}, False),
    ],
)
def test_the_golden_bound(output: Any, reference: Any, bounds: dict[str, float], passes: bool) -> None:
    _, mismatch = compared(output, reference, **bounds)
    assert (mismatch == "") == passes, mismatch


def test_a_mismatch_names_the_worst_element_with_figure_and_bound() -> None:
    error, mismatch = compare(
        [np.array([[1.0, 2.5], [3.0, 9.0]])], [np.array([[1.0, 2.0], [3.0, 4.0]])], [Y], rtol=0.0, atol=0.25
    )
    assert error == 5.0
    assert mismatch == (
        "output 'y'[1, 1] is 9 where the reference is 4: difference 5, bound 0.25; 2 of 4 elements are out of bounds"
    )


def test_shapes_and_counts_must_match() -> None:
    one = np.zeros(2)
    assert "shape (3,) instead of (2,)" in compare([np.zeros(3)], [one], [Y], rtol=1, atol=1)[1]
    # No broadcasting: a scalar is not a vector of equal values.
    assert "shape () instead of (2,)" in compare([np.zeros(())], [one], [Y], rtol=1, atol=1)[1]
    assert compare([], [one], [Y], rtol=1, atol=1)[1] == "0 outputs instead of 1"


def test_small_integers_do_not_overflow_in_the_difference() -> None:
    error, mismatch = compared(np.array([127, 0], "int8"), np.array([-128, 0], "int8"), atol=1.0)
    assert error == 255 and mismatch
    assert compared(np.array([True, False]), np.array([True, True]))[0] == 1.0
    assert compared(np.zeros(0), np.zeros(0)) == (0.0, "")


@given(
    hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32)),
    hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(0, 1),
    st.floats(0, 10),
)
def test_the_comparison_is_the_formula(a: Any, b: Any, rtol: float, atol: float) -> None:
    a64, b64 = a.astype("float64"), b.astype("float64")
    error, mismatch = compare([a], [b], [Y], rtol=rtol, atol=atol)
    assert (mismatch == "") == bool((np.abs(a64 - b64) <= atol + rtol * np.abs(b64)).all())
    assert error == np.abs(a64 - b64).max()


# --- Tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ITEM_SIZES))
def test_tensors_survive_the_way_in_every_element_type(name: str) -> None:
    array = np.ones((2, 3)).astype(dtype_of(name))
    spec = spec_of("x", array)
    assert spec.dtype == name
    back = from_bytes(spec, to_bytes(array))
    assert back.shape == (2, 3) and back.dtype == array.dtype and (back == array).all()


def test_other_memory_orders_travel_as_little_endian_c_order() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert to_bytes(array) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_tensor_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(FleetError, match=f"takes 8 bytes, {size} came"):
        from_bytes(Y, b"\0" * size)


# --- Faults -------------------------------------------------------------------------------------


def test_faults_are_parsed_and_told_again() -> None:
    faults = Faults.parse(["crash", "slow", "drop:7"])
    assert "crash" in faults and "hang" not in faults
    assert (faults.value("slow"), faults.value("drop"), faults.value("hang")) == (1.5, 7.0, 0.0)
    assert Faults.parse(faults.texts()) == faults
    assert all(kind in Faults.parse([kind]) for kind in KINDS)


@pytest.mark.parametrize("text", ["", "fire", "slow:", "slow:-1", "slow:nan", "slow:inf", "crash:1", "drop:0.5"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(FleetError):
        Faults.parse([text])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "bool", "int64"])
def test_a_perturbed_output_is_wrong_everywhere(dtype: str) -> None:
    output = np.array([0, 1, 1, 0], dtype)
    wrong = perturbed(output)
    assert wrong.dtype == output.dtype and (wrong != output).all()


class Counting:
    engine = "host_clock"

    def __init__(self) -> None:
        self.queries = 0

    def infer(self, inputs: Any) -> Any:
        return list(inputs)

    def measure(self, queries: int) -> Any:
        self.queries += queries
        return np.full(queries, 1e-4)

    def conditions(self) -> dict[str, str]:
        return {"own": "yes"}

    def close(self) -> None:
        pass


def test_a_slow_runner_measures_every_query_slower() -> None:
    inner = Counting()
    runner = FaultyRunner(inner, Faults.parse(["slow:2"]))
    assert runner.measure(5) == pytest.approx([2e-4] * 5) and inner.queries == 5
    assert runner.conditions() == {"own": "yes", "faults": "slow:2"}


# --- Keys ---------------------------------------------------------------------------------------


def test_admission_follows_its_directory_and_its_grants(tmp_path: Path) -> None:
    admission = Admission(tmp_path / "authorized")
    one, two = (zmq.curve_keypair()[0] for _ in range(2))
    assert not admission.callback("fleet", one)
    (tmp_path / "authorized").mkdir()
    (tmp_path / "authorized" / "one.pub").write_bytes(one + b"\n")
    (tmp_path / "authorized" / "two.txt").write_bytes(two)
    (tmp_path / "authorized" / "noise.pub").write_bytes(b"\xff\xfe")
    (tmp_path / "authorized" / "folder.pub").mkdir()
    assert admission.callback("fleet", one) and not admission.callback("fleet", two)
    admission.grant(two)
    assert admission.admits(two.decode())
    admission.revoke(two)
    admission.revoke(two)
    assert not admission.admits(two.decode())


def test_a_damaged_trusted_key_never_opens_the_door(tmp_path: Path) -> None:
    trusted = TrustedKeys(tmp_path)
    assert not trusted
    (tmp_path / "bad.pub").write_text("not hex")
    assert len(trusted) == 1 and list(trusted.values()) == [""]
    keys = Keys(tmp_path / "keys")
    (tmp_path / "bad.pub").write_text(keys.signing_public)
    assert dict(trusted) == {keys.key_id: keys.signing_public}


# --- Requirements -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "met"), [("0.1", True), ("0.0.9", True), ("0.2", False), ("1", False), ("x", False)]
)
def test_the_agents_version(wanted: str, met: bool) -> None:
    assert (unmet_version(wanted) == "") == met


# --- Logs ---------------------------------------------------------------------------------------


def test_the_log_book_keeps_the_last_lines_and_tells_followers(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    file.write_bytes(b"".join(b"old %d\n" % i for i in range(5000)) + b"\xff\n")
    book = LogBook()
    book.seed(file)
    followed: list[str] = []
    book.follow(followed.append)
    logger = logging.Logger("test")
    logger.addHandler(book)
    logger.info("new %s", "x" * 10_000)
    book.unfollow(followed.append)
    logger.info("last")
    assert book.tail(1) == ["last"] and book.tail(0) == [] and book.tail(-1) == []
    assert book.tail(10_000)[0] == "old 3003" and len(book.tail(10_000)) == 2000
    assert len(followed) == 1 and len(followed[0]) == 2000


# --- Command line -------------------------------------------------------------------------------


def test_authorize_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = Keys(tmp_path / "keys")
    home = Home(tmp_path / "home")
    command = ["authorize", "--home", str(home.root), keys.curve_public.decode(), keys.signing_public]
    assert agent_main.main(command) == 0
    assert Admission(home.authorized).admits(keys.curve_public.decode())
    assert dict(TrustedKeys(home.trusted)) == {keys.key_id: keys.signing_public}
    assert agent_main.main(["show", "--home", str(home.root)]) == 0
    shown = capsys.readouterr().out
    assert keys.key_id in shown and "running     no" in shown
    assert Keys(home.keys).curve_public.decode() in shown
    assert Keys(home.keys).curve_secret.decode() not in shown


@pytest.mark.parametrize("last", [True, False])
def test_a_key_may_begin_with_a_minus(tmp_path: Path, last: bool) -> None:
    keys, home = Keys(tmp_path / "keys"), Home(tmp_path / "home")
    public = zmq.curve_keypair()[0].decode()
    while not public.startswith("-"):
        public = zmq.curve_keypair()[0].decode()
    where, both = ["--home", str(home.root)], [public, keys.signing_public]
    assert agent_main.main(["authorize", *(where + both if last else both + where)]) == 0
    assert Admission(home.authorized).admits(public)


@pytest.mark.parametrize(("curve", "sign"), [("short", "0" * 64), ("~" * 40, "0" * 64), (None, "zz"), (None, "00")])
def test_what_is_no_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], curve: str | None, sign: str
) -> None:
    good = zmq.curve_keypair()[0].decode()
    assert agent_main.main(["authorize", "--home", str(tmp_path), curve or good, sign]) == 2
    assert "public key" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pub"))


@pytest.mark.parametrize(
    "options",
    [
        ["--target", "toaster"],
        ["--target", "x86", "--rpc-port", "http"],
        ["--target", "x86", "--rpc-port", "70000"],
        ["--target", "x86", "--tracker", "nowhere"],
        ["--target", "x86", "--listen", "ipc:///tmp/x"],
        ["--target", "x86", "--fault", "crash"],
    ],
)
def test_a_wrong_option_is_said_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    home = tmp_path / "home"
    assert agent_main.main(["run", "--home", str(home), *options]) in (1, 2)
    assert capsys.readouterr().err.startswith("fleet-agent: ")
    assert not home.exists()


def test_an_info_file_that_is_not_one_means_that_nothing_runs(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for content in (None, b"", b"[]", b"\xff"):
        if content is not None:
            home.info.write_bytes(content)
        with pytest.raises(FleetError) as raised:
            read_info(home)
        assert raised.value.code == "not-running"
