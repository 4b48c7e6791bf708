"""``fleet inventory``, and what the playbooks ask for"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from controller.cli import exits
from controller.cli.session import Session, command, print_data
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    @command(app, "inventory", selects=True)
    def inventory(
        session: Session,
        ansible: Annotated[bool, typer.Option("--ansible", help="Ansible's dynamic inventory, as JSON.")] = False,
    ) -> int:
        """Print the inventory: the devices as a table, or as Ansible takes them."""
        fleet = session.fleet()
        selection = session.select(fleet, all_by_default=True) if fleet.inventory.devices or session.selects else []
        if ansible:
            import msgspec

            from controller.provision import hosts

            print_data(
                msgspec.json.format(msgspec.json.encode(hosts.dynamic(selection, fleet.keys, fleet.home)), indent=2)
                + b"\n"
            )
            return exits.GOOD
        rows = [[d.name, d.target, d.address or d.ssh or d.rpc or d.tracker] for d in selection]
        parts = []
        if not session.as_json:
            from controller.cli.tables import table

            parts.append(table(["device", "target", "reached at"], rows))
        session.answer({"inventory": str(fleet.inventory.path), "devices": selection}, *parts)
        return exits.GOOD

    @command(app, "agent-package", hidden=True)
    def agent_package(
        session: Session,
        target: Annotated[str, typer.Argument(help="What kind of board it is for.")],
        facts: Annotated[str, typer.Argument(help="What the playbooks' look at the board has said.")],
        runtime: Annotated[str, typer.Option(metavar="own|pypi|none", help="TVM's runtime on the board.")] = "own",
    ) -> int:
        """Make the agent for one board; what the playbooks call when they run without `fleet provision`."""
        from controller.home import Home
        from controller.provision import board, package

        chosen = runtime_of(runtime)
        found = board.check(board.parse(facts), target)
        made = package.make(found, Home.find(), lambda stage, share: None, runtime=chosen)
        session.answer({"package": made}, f"{made.id}  {made.path}")
        return exits.GOOD


def runtime_of(text: str) -> Literal["own", "pypi", "none"]:
    if text not in ("own", "pypi", "none"):
        raise FleetError(f"there is no runtime '{text}'", code="usage", hint="there is: own, pypi, none")
    return cast("Literal['own', 'pypi', 'none']", text)
