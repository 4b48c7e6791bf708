"""Whatever pieces come in whatever order, through whatever restarts: a blob is what its digest says, or not there."""

import shutil
import tempfile
from pathlib import Path

import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from made_bundles import blob, sha256

from agent import parts
from agent.protocol import BlobRef, PutChunk
from agent.space import measure
from agent.store import Store
from targets.base import FleetError

MAX = 600


class Pushes(RuleBasedStateMachine):
    """Several blobs are pushed by several senders; the model is how many bytes of each must be here."""

    blobs = Bundle("blobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store(Path(self.folder) / "store")
        self.held: dict[bytes, int] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @initialize(target=blobs, sizes=st.lists(st.integers(1, MAX), min_size=1, max_size=3, unique=True))
    def choose(self, sizes: list[int]) -> object:
        self.held = {blob(size, size): 0 for size in sizes}
        return multiple(*self.held)

    @rule(data=blobs, offset=st.integers(0, MAX), length=st.integers(0, MAX), compress=st.booleans())
    def put(self, data: bytes, offset: int, length: int, compress: bool) -> None:
        """A piece from anywhere: taken, skipped as far as it is here, or refused for the gap it would leave."""
        piece = data[offset : offset + length]
        held = self.held[data]
        request = PutChunk(
            token="",
            sha256=sha256(data),
            offset=min(offset, len(data)),
            length=len(piece),
            total=len(data),
            codec="zstd" if compress else "raw",
        )
        try:
            answer = self.store.put_chunk(request, zstandard.compress(piece) if compress else piece)
        except FleetError as error:
            assert error.code == "bad-offset"
            assert request.offset > held < len(data)
            assert f"continues at byte {held}," in error.message
        else:
            assert request.offset <= held or held == len(data)
            self.held[data] = max(held, request.offset + len(piece)) if held < len(data) else held
            assert answer.offset == self.held[data]
            assert answer.complete == (answer.offset == len(data))

    @rule(data=blobs, length=st.integers(1, MAX))
    def go_on(self, data: bytes, length: int) -> None:
        """What an orderly sender does: asks where to go on, and goes on there."""
        missing = self.store.missing([BlobRef(sha256=sha256(data), size=len(data))])
        assert [m.offset for m in missing] == ([self.held[data]] if self.held[data] < len(data) else [])
        if missing:
            self.put(data, missing[0].offset, length, False)

    @rule(data=blobs, garbage=st.binary(min_size=1, max_size=20))
    def send_rubbish(self, data: bytes, garbage: bytes) -> None:
        """A sender that says all is there with other bytes than it should: the blob begins anew."""
        held = self.held[data]
        rest = len(data) - held
        wrong = (garbage * rest)[:rest]
        if not rest or wrong == data[held:]:
            return
        request = PutChunk(token="", sha256=sha256(data), offset=held, length=rest, total=len(data))
        try:
            self.store.put_chunk(request, wrong)
        except FleetError as error:
            assert error.code == "bad-digest"
        else:
            raise AssertionError("rubbish was taken")
        self.held[data] = 0

    @rule()
    def restart(self) -> None:
        """The process ends without a word and another begins."""
        self.store.close()
        self.store = Store(Path(self.folder) / "store")

    @rule()
    def forget_open_files(self) -> None:
        """Other pushes make the store close the files of these."""
        self.store.close()

    @invariant()
    def is_whole(self) -> None:
        whole = {sha256(data) for data, held in self.held.items() if held == len(data)}
        assert set(self.store.blobs) == whole
        for digest in whole:
            assert sha256(self.store.blobs.path(digest).read_bytes()) == digest
        assert self.store.usage()[0] == measure(self.store.root) == sum(self.held.values())
        assert len(self.store._parts._open) <= parts._OPEN


TestPushes = Pushes.TestCase
TestPushes.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
