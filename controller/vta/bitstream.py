"""``vta bitstream``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import exits
from controller.cli.session import Session, command, default
from controller.vta import arguments

if TYPE_CHECKING:
    from bitstreams.manifest import KnownBitstream

_HELP = "Known bitstreams: which there are, get them, check a file."

_NAME_WIDTH = 42
_Manifest = Annotated[
    Path | None, typer.Option("--manifest", metavar="FILE", help="A manifest of your own, on top of the published one.")
]
_ForBoard = Annotated[str, typer.Option("--board", metavar="B", help="Board that it must fit.")]


def register(app: typer.Typer) -> None:
    bitstream = typer.Typer(help=_HELP)
    app.add_typer(bitstream, name="bitstream")

    @default(bitstream)
    def plain(session: Session) -> int:
        """Known bitstreams: which there are, get them, check a file."""
        return _show(session, _manifest(None), "")

    @command(bitstream, "list")
    def list_them(session: Session, board: _ForBoard = "", manifest: _Manifest = None) -> int:
        """Which bitstreams are known: for which board, with which configuration and instruction layout."""
        return _show(session, _manifest(manifest), board)

    @command(bitstream, "fetch")
    def fetch(
        session: Session,
        names: Annotated[
            list[str], typer.Argument(metavar="NAME…", help="Such as pynq/0.0.2, or a SHA-256's beginning.")
        ],
        output: Annotated[
            Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder instead of the cache.")
        ] = None,
        manifest: _Manifest = None,
    ) -> int:
        """Download bitstreams into the cache; each is there only whole and with the right digest."""
        from bitstreams import fetch as downloads
        from bitstreams import manifest as manifests
        from controller.cli.view import view
        from controller.events import Progress
        from controller.home import Home

        entries = _manifest(manifest)
        chosen = [manifests.find(name, entries) for name in names]
        folder = output or Home.find().cache / "bitstreams"
        found = []
        with view("vta bitstream fetch") as listener:
            for one in chosen:
                detail = one.name

                def progress(share: float, detail: str = detail) -> None:
                    listener(Progress(device="", stage="fetch", share=share, detail=detail))

                found.append({**_describe(one), "path": str(downloads.fetch(one, folder, progress))})
        session.answer({"bitstreams": found}, *(f"{one['name']}  {one['path']}" for one in found))
        return exits.GOOD

    @command(bitstream, "check")
    def check(
        session: Session,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A .bit file.")],
        board: _ForBoard = "",
        config: Annotated[str, typer.Option("--config", metavar="C", help="Configuration that it must have.")] = "",
        sha256: Annotated[str, typer.Option("--sha256", metavar="HEX", help="Digest that it must have.")] = "",
        manifest: _Manifest = None,
    ) -> int:
        """Read a bitstream's header; refuse one that is damaged, unknown, or for another part or configuration."""
        from bitstreams import bitfile
        from targets.vta import boards

        wanted = arguments.configuration(config)
        checked = bitfile.check(
            file,
            board=boards.find(board) if board else None,
            identity=wanted.identity if wanted else "",
            sha256=sha256.lower(),
            manifest=_manifest(manifest),
        )
        header, known = checked.header, checked.known
        facts: dict[str, Any] = {"file": str(file), "size": len(checked.data), "sha256": checked.sha256}
        if header is not None:
            facts |= {"design": header.design, "part": header.part, "built": header.built}
            facts["idcode"] = "" if header.idcode is None else f"{header.idcode:#010x}"
        if known is not None:
            facts |= {"name": known.name, "board": known.board, "identity": known.identity, "note": known.note}
        session.answer({"bitstream": facts}, *(f"{key:9} {value}" for key, value in facts.items() if value != ""))
        return exits.GOOD


def _manifest(own: Path | None) -> tuple[KnownBitstream, ...]:
    from bitstreams import manifest

    return (*(manifest.load(own) if own is not None else ()), *manifest.known())


def _cut(name: str) -> str:
    """A name that leaves the other columns their room on a terminal of 80; in full it is in ``--json``."""
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


def _describe(one: KnownBitstream) -> dict[str, Any]:
    return {
        "name": one.name,
        "board": one.board,
        "device": one.device,
        "identity": one.identity,
        "sha256": one.sha256,
        "git_blob": one.git_blob,
        "size": one.size,
        "format": one.format,
        "built": one.built,
        "url": one.url,
        "note": one.note,
    }


def _show(session: Session, manifest: Sequence[KnownBitstream], board: str) -> int:
    if board:
        from targets.vta import boards

        boards.find(board)
        manifest = [one for one in manifest if one.board == board]
    from bitstreams.fetch import cached
    from controller.home import Home

    folder = Home.find().cache / "bitstreams"
    paths = {one.digest: cached(one, folder) for one in manifest}
    if session.as_json:
        session.answer({"bitstreams": [{**_describe(one), "path": str(paths[one.digest] or "")} for one in manifest]})
        return exits.GOOD
    from controller.cli.tables import Cell, table

    rows: list[list[Cell]] = [
        [one.digest.partition(":")[2][:16], "yes" if paths[one.digest] else "no", one.device, _cut(one.name)]
        for one in manifest
    ]
    notes = [f"{one.name}: {one.note}" for one in manifest if one.note]
    session.answer({}, table(["digest", "here", "device", "bitstream"], rows), *(["", *notes] if notes else []))
    return exits.GOOD
