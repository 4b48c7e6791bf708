"""Downloading bitstreams, from a server that may do anything."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bitstreams import fetch
from bitstreams.manifest import KnownBitstream, git_blob
from targets.base import FleetError

DATA = bytes(range(256)) * 9000


class Server:
    """Answers every request with ``reply`` and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.reply: Callable[[BaseHTTPRequestHandler], None] = whole(DATA)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                outer.reply(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/some.bit"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def whole(data: bytes, length: int | str | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        # A client that has had enough closes.
        try:
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True

    return reply


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def known(server: Server, **digest: str | int) -> KnownBitstream:
    digest = digest or {"sha256": hashlib.sha256(DATA).hexdigest(), "size": len(DATA)}
    return KnownBitstream(
        board="pynq", device="7z020", configuration="c", hw_ver="0.0.2", url=server.url, **digest  # type: ignore[arg-type]
    )  # fmt: skip


def failed(one: KnownBitstream, folder: Path) -> FleetError:
    with pytest.raises(FleetError) as caught:
        fetch.fetch(one, folder)
    assert caught.value.hint
    assert not folder.exists() or list(folder.iterdir()) == []
    return caught.value


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    shares: list[float] = []
    one = known(server)
    folder = tmp_path / "a" / "b"
    assert fetch.cached(one, folder) is None
    path = fetch.fetch(one, folder, shares.append)
    assert path.read_bytes() == DATA
    assert path.name == f"sha256-{one.sha256}.bit"
    assert shares and shares == sorted(shares) and shares[-1] == 1.0
    assert fetch.fetch(one, folder) == fetch.cached(one, folder) == path
    assert server.requests == 1
    assert list(folder.iterdir()) == [path]


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    one = known(server)
    path = fetch.fetch(one, tmp_path)
    path.write_bytes(DATA[:-1])
    assert fetch.cached(one, tmp_path) is None
    assert fetch.fetch(one, tmp_path).read_bytes() == DATA
    assert server.requests == 2


def test_git_s_name_is_enough(server: Server, tmp_path: Path) -> None:
    one = known(server, git_blob=git_blob(DATA))
    assert fetch.fetch(one, tmp_path).read_bytes() == DATA
    server.reply = whole(DATA[::-1])
    assert failed(one, tmp_path / "other").code == "wrong-digest"


def test_something_else_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.reply = whole(DATA[:-1] + b"!")
    error = failed(known(server), tmp_path / "x")
    assert error.code == "wrong-digest"
    assert server.url in error.message


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda handler: handler.send_error(404), "404"),
        (lambda handler: handler.send_error(500), "500"),
        (whole(DATA[:1000]), "ended after 1000"),
        (whole(DATA[:1000], len(DATA)), ""),
        (whole(DATA + b"x"), "longer than"),
        (lambda handler: handler.wfile.write(b"what?\r\n\r\n"), ""),
    ],
)
def test_servers_that_fail(
    server: Server, tmp_path: Path, reply: Callable[[BaseHTTPRequestHandler], None], says: str
) -> None:
    server.reply = reply
    error = failed(known(server), tmp_path / "x")
    assert error.code == "download-failed"
    assert says in error.message


def test_a_length_that_is_no_number(server: Server, tmp_path: Path) -> None:
    server.reply = whole(DATA, "many")
    assert failed(known(server, git_blob=git_blob(DATA)), tmp_path / "x").code == "download-failed"


def test_an_endless_answer_ends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BITSTREAM", 1 << 20)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True

    server.reply = endless
    error = failed(known(server, git_blob="0" * 40), tmp_path / "x")
    assert error.code == "download-failed"
    assert "longer than" in error.message


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    one = known(server)
    server.close()
    assert failed(one, tmp_path / "x").code == "download-failed"
