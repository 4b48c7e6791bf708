"""``--device 0,1``: a process for each device, that begin together."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import queue
import sys
from typing import TYPE_CHECKING, Any

from targets.ascend.sim.bench_stdout import Library

if TYPE_CHECKING:
    from targets.ascend.sim.ais_bench import Measured
    from targets.ascend.sim.board import Board

logger = logging.getLogger("ais_bench")


def run(board: Board, args: argparse.Namespace, arguments: list[str]) -> int:
    """Measure on every device of ``args.device`` at once; 0 when all of them delivered."""
    # Nothing that has threads was imported yet: a fork is safe, and the children need not import it all again.
    context = multiprocessing.get_context("fork")
    messages: Any = context.Queue()
    logger.info(f"multidevice:{args.device} run begin")
    together = context.Barrier(len(args.device))
    children = [
        context.Process(target=_child, args=(board, args, device, index, messages, together))
        for index, device in enumerate(args.device)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    delivered: dict[int, Measured] = {}
    while len(delivered) < len(children):
        try:
            index, measured = messages.get(timeout=1)
        except queue.Empty:
            break
        delivered[index] = measured
    complete = len(delivered) == len(children) and all(child.exitcode == 0 for child in children)
    result = 0 if complete else 1
    logger.info(f"multidevice run end qsize:{2 * len(delivered)} result:{result}")
    for index, measured in sorted(delivered.items()):
        device = args.device[index]
        logger.info(
            f"i:{index} device_{device} throughput:{measured.throughput} "
            f"start_time:{measured.start} end_time:{measured.end}"
        )
    logger.info(f"summary throughput:{sum(measured.throughput for measured in delivered.values())}")
    return result


def _child(board: Board, args: argparse.Namespace, device: int, index: int, messages: Any, together: Any) -> None:
    from targets.ascend.sim.ais_bench import measure

    logger.info(f"subprocess_{index} main run")
    logger.info(f"subprocess_{index} qsize:{index} now waiting")
    together.wait(60)
    logger.info(f"subprocess_{index} qsize:{len(args.device)} ready to infer run")
    library = Library()
    try:
        measured = measure(board, args, device, library, f"device{device}_{index}")
    finally:
        sys.stdout.flush()
        library.flush()
    messages.put((index, measured))
