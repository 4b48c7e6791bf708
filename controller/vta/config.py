"""``vta config``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import exits
from controller.cli.session import Session, command
from controller.vta import arguments

if TYPE_CHECKING:
    from targets.vta.config import VtaConfig

_MEANINGS = {
    "TARGET": "the board it is for",
    "HW_VER": "instruction layout: 0.0.1 or 0.0.2",
    "LOG_INP_WIDTH": "bits of an input value",
    "LOG_WGT_WIDTH": "bits of a weight",
    "LOG_ACC_WIDTH": "bits of an accumulator",
    "LOG_BATCH": "pictures in a block",
    "LOG_BLOCK": "channels in a block",
    "LOG_UOP_BUFF_SIZE": "bytes for micro-ops on chip",
    "LOG_INP_BUFF_SIZE": "bytes for inputs on chip",
    "LOG_WGT_BUFF_SIZE": "bytes for weights on chip",
    "LOG_ACC_BUFF_SIZE": "bytes for accumulators on chip",
}


def register(app: typer.Typer) -> None:
    @command(app, "config")
    def config(
        session: Session,
        name: Annotated[
            str,
            typer.Argument(
                metavar="[NAME|FILE]",
                help="A board, a published name (NAME@HW_VER), or a JSON file.",
                show_default=False,
            ),
        ] = "sim",
        output: Annotated[
            Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it as vta_config.json.")
        ] = None,
    ) -> int:
        """Show and check a VTA configuration: what its fields mean, and what follows from them."""
        if output is not None:
            arguments.check_writable(output)
        found = arguments.configuration(name)
        assert found is not None
        if output is not None:
            _write(found, output)
        _answer(session, found)
        return exits.GOOD


def _write(config: VtaConfig, output: Path) -> None:
    import msgspec

    from targets.files import disk_errors, write_atomic

    with disk_errors(str(output)):
        write_atomic(output, msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")


def _answer(session: Session, config: VtaConfig) -> None:
    memories = _memories(config)
    if session.as_json:
        fields = _fields(config)
        session.answer(
            {
                "name": config.name,
                "identity": config.identity,
                "config": config.to_json(),
                "memories": memories,
                "instructions": fields,
            }
        )
        return
    from controller.cli.tables import Cell, table
    from controller.tui.figures import size

    rows: list[list[Cell]] = [
        [name, str(value), "" if isinstance(value, str) else str(1 << value), _MEANINGS[name]]
        for name, value in config.to_json().items()
    ]
    parts: list[list[Cell]] = [
        [m["memory"], str(m["depth"]), str(m["element_bytes"]), size(m["bytes"])] for m in memories
    ]
    session.answer(
        {},
        config.identity,
        "",
        table(["field", "value", "2^value", "meaning"], rows, right=("2^value",)),
        "",
        table(["memory", "elements", "bytes each", "size"], parts, right=("elements", "bytes each", "size")),
    )


def _memories(config: VtaConfig) -> list[dict[str, Any]]:
    return [
        {"memory": name, "element_bytes": each, "depth": depth, "bytes": each * depth}
        for name, each, depth in (
            ("UOP", config.uop_bytes, config.uop_depth),
            ("INP", config.inp_bytes, config.inp_depth),
            ("WGT", config.wgt_bytes, config.wgt_depth),
            ("ACC", config.acc_bytes, config.acc_depth),
            ("OUT", config.out_bytes, config.acc_depth),
        )
    ]


def _fields(config: VtaConfig) -> dict[str, dict[str, tuple[int, int]]]:
    """``{opcode: {field: (lowest bit, width)}}``"""
    from targets.vta import isa

    return {opcode.name: dict(isa.layout(config, opcode)) for opcode in isa.Opcode}
