"""``fleet keys``: public keys only; secrets stay in their files."""

from __future__ import annotations

import typer

from controller.cli import exits
from controller.cli.session import Session, command, default


def register(app: typer.Typer) -> None:
    keys = typer.Typer(help="This controller's public keys, and how a board comes to trust them.")
    app.add_typer(keys, name="keys")

    @default(keys)
    def plain(session: Session) -> int:
        """This controller's public keys, and how a board comes to trust them."""
        return show(session)

    @command(keys, "show")
    def show_(session: Session) -> int:
        """Print the public keys; they are made if there are none yet."""
        return show(session)

    @command(keys, "trust")
    def trust(session: Session) -> int:
        """Print the command that makes a board trust this controller; run it on the board."""
        line = _authorize_command()
        session.answer({"command": line}, line)
        return exits.GOOD


def _authorize_command() -> str:
    import shlex

    from controller.home import Home
    from targets.keys import Keys

    keys = Keys(Home.find().keys)
    return shlex.join(["fleet-agent", "authorize", keys.curve_public.decode(), keys.signing_public])


def show(session: Session) -> int:
    from controller.home import Home
    from targets.keys import Keys

    keys = Keys(Home.find().keys)
    document = {
        "folder": str(keys.root),
        "curve_public": keys.curve_public.decode(),
        "signing_public": keys.signing_public,
        "signing_key_id": keys.key_id,
    }
    session.answer(
        {"keys": document},
        f"folder          {keys.root}",
        f"CURVE public    {document['curve_public']}",
        f"signing public  {document['signing_public']}",
        f"signing key id  {document['signing_key_id']}",
        "`fleet keys trust` prints the command that makes a board trust them",
    )
    return exits.GOOD
