"""``fleet devices`` and ``fleet status``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from controller.cli import complete, exits
from controller.cli.running import run
from controller.cli.session import Session, build_options, command, default, pairs
from controller.liveness import OUT_OF_REACH
from targets.base import FleetError, Link

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.reports import DeviceReport, StatusReport


def register(app: typer.Typer) -> None:
    devices = typer.Typer(help="The devices: what is reachable, healthy, leased, running what.")
    app.add_typer(devices, name="devices")

    @default(devices, selects=True)
    def plain(session: Session) -> int:
        """The devices: what is reachable, healthy, leased, running what."""
        return show(session, fail=False)

    @command(devices, "list", selects=True)
    def list_(session: Session) -> int:
        """List the devices and what they run."""
        return show(session, fail=False)

    @command(devices, "check", selects=True)
    def check(session: Session) -> int:
        """Ask every device; exit 1 if one does not answer."""
        return show(session, fail=True)

    @command(devices, "add")
    def add(
        session: Session,
        name: Annotated[str, typer.Argument(help="What to call the device.")],
        target: Annotated[
            str, typer.Option("--target", metavar="T", help="Kind of board.", autocompletion=complete.targets)
        ],
        address: Annotated[str, typer.Option(metavar="tcp://HOST:PORT", help="The agent's socket.")] = "",
        key: Annotated[str, typer.Option(help="The agent's public key; `fleet-agent show` prints it.")] = "",
        ssh: Annotated[
            str, typer.Option(metavar="[USER@]HOST[:PORT]", help="Its SSH server, or a Host of ssh_config.")
        ] = "",
        ssh_config: Annotated[str, typer.Option(metavar="FILE", help="Instead of ~/.ssh/config.")] = "",
        ssh_identity: Annotated[str, typer.Option(metavar="FILE", help="The private key to log in with.")] = "",
        ssh_known_hosts: Annotated[str, typer.Option(metavar="FILE", help="Instead of ~/.ssh/known_hosts.")] = "",
        agent_home: Annotated[str, typer.Option(metavar="DIR", help="The agent's directory on the board.")] = "",
        link: Annotated[
            str, typer.Option(metavar="rpc|ssh|rpc+ssh", help="What goes where; default: what answers.")
        ] = "",
        rpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="Its TVM RPC listener.")] = "",
        tracker: Annotated[str, typer.Option(metavar="HOST:PORT", help="TVM tracker it registers with.")] = "",
        rpc_key: Annotated[str, typer.Option(help="Its name at the tracker.")] = "",
        label: Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Repeatable.")] = None,
        host: Annotated[str, typer.Option(help="Machine that it shares with other boards.")] = "",
        threads: Annotated[int, typer.Option(min=0, help="Threads to run models with; 0 for all cores.")] = 0,
        option: Annotated[
            list[str] | None,
            typer.Option("--option", metavar="K=V", help="Option of all builds for it (repeatable), as board=rpi4."),
        ] = None,
    ) -> int:
        """Add a device to the inventory."""
        from controller.home import Home
        from controller.inventory import Device
        from controller.inventory_edit import add as add_device

        path = Home.find().inventory(session.inventory)
        device = Device(
            name=name,
            target=target,
            address=address,
            key=key,
            ssh=ssh,
            ssh_config=_file(ssh_config),
            ssh_identity=_file(ssh_identity),
            ssh_known_hosts=_file(ssh_known_hosts),
            agent_home=agent_home,
            link=_link(link),
            rpc=rpc,
            tracker=tracker,
            rpc_key=rpc_key,
            labels=pairs(label or (), "--label"),
            host=host,
            threads=threads,
            options=build_options(option or ()),
        )
        add_device(path, device)
        session.answer({"added": name, "inventory": str(path)}, f"added {name} to {path}")
        return exits.GOOD

    @command(devices, "remove")
    def remove(
        session: Session,
        names: Annotated[list[str], typer.Argument(metavar="NAME…", autocompletion=complete.devices)],
    ) -> int:
        """Remove devices from the inventory."""
        from controller.home import Home
        from controller.inventory import SIMULATED_PREFIX
        from controller.inventory_edit import remove as remove_device

        path = Home.find().inventory(session.inventory)
        for name in names:
            if name.startswith(SIMULATED_PREFIX):
                raise FleetError(f"{name} is a simulated board", code="usage", hint=f"`fleet sim down {name}`")
            remove_device(path, name)
        session.answer({"removed": names, "inventory": str(path)}, f"removed {', '.join(names)} from {path}")
        return exits.GOOD

    @command(app, "status", selects=True)
    def status(session: Session) -> int:
        """Everything each device tells about itself."""
        fleet = session.fleet()
        reports = run(fleet.status(session.select(fleet, all_by_default=True)))
        session.answer({"devices": reports}, *(() if session.as_json else _status_tables(reports)))
        return exits.FAILED if any(report.state in OUT_OF_REACH for report in reports) else exits.GOOD


def _link(text: str) -> Link | Literal[""]:
    for link in get_args(Link):
        if text == link:
            return cast("Link", link)
    if text:
        raise FleetError(f"there is no link '{text}'", code="usage", hint=f"there is: {', '.join(get_args(Link))}")
    return ""


def _file(name: str) -> str:
    """As the inventory holds it, whose relative names begin beside itself and not here."""
    return str(Path(name).absolute()) if name and not name.startswith("~") else name


def show(session: Session, *, fail: bool) -> int:
    """Print the selected devices; with ``fail``, one that does not answer gives exit 1."""
    fleet = session.fleet()
    if not session.selects and not fleet.inventory.devices:
        session.answer({"devices": []}, "no devices yet: `fleet init` and `fleet devices add`, or `fleet sim up`")
        return exits.GOOD
    reports = run(fleet.devices(session.select(fleet, all_by_default=True)))
    session.answer({"devices": reports}, *(() if session.as_json else [_device_table(reports)]))
    return exits.FAILED if fail and any(report.state in OUT_OF_REACH for report in reports) else exits.GOOD


def _device_table(reports: Sequence[DeviceReport]) -> RenderableType:
    from controller.cli.tables import Cell, board, labels, short, table, word

    columns = ["device", "target", "state", "model", "release", "lease", "agent", "labels", "reason"]
    rows: list[list[Cell]] = [
        [
            board(r.name, r.simulated),
            r.target,
            word(r.state),
            r.model,
            short(r.release),
            r.lease,
            r.agent_version,
            labels(r.labels),
            r.reason,
        ]
        for r in reports
    ]
    # A column that says nothing about any device is left out.
    kept = [index for index in range(len(columns)) if any(str(row[index]) for row in rows)]
    return table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])


def _status_tables(reports: Sequence[StatusReport]) -> list[RenderableType]:
    from rich.text import Text

    from controller.cli.tables import board, short, word
    from controller.tui.figures import duration, size

    parts: list[RenderableType] = []
    for report in reports:
        head = Text.assemble((board(report.name, report.simulated), "bold"), f"  {report.target}  ", word(report.state))
        parts.append(head)
        if report.reason:
            parts.append(Text(f"  {report.reason}"))
        if report.state in OUT_OF_REACH:
            continue
        for release in report.releases:
            line = f"  {release.slot}: {release.model} {short(release.bundle)}"
            if release.previous:
                line += f"  (before: {release.previous_model} {short(release.previous)})"
            parts.append(Text(line))
        if not report.releases:
            parts.append(Text("  no release"))
        facts = [f"agent {report.agent_version}", f"up {duration(report.uptime)}", f"over {report.carrier}"]
        facts += [f"store {size(report.store_bytes)}", f"free {size(report.free_bytes)}"]
        if report.lease:
            facts.append(f"held by {report.lease} for {report.lease_expires_in:.0f} s")
        if report.unacknowledged:
            facts.append(f"{report.unacknowledged} results to collect (the next `fleet bench` does)")
        parts.append(Text("  " + ", ".join(facts)))
        parts.append(Text("  " + "  ".join(f"{key} {value:g}" for key, value in sorted(report.telemetry.items()))))
    return parts
