"""``fleet-agent``: the daemon on a device."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent import memory
from agent.config import VERSION, AgentInfo, Config, Home, read_info, read_keys, write_info
from agent.faults import FULL_DISK_QUOTA, KINDS, Faults
from targets.base import FleetError
from targets.emulation import emulated_on
from targets.files import write_atomic

if TYPE_CHECKING:
    from agent.server import Server

log = logging.getLogger("agent")


#: Characters of a CURVE key as text (ZeroMQ RFC 32), which may begin with a minus.
_CURVE_TEXT = 40


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(_keys_last(list(sys.argv[1:] if arguments is None else arguments)))
    try:
        code: int = options.act(options)
        return code
    except FleetError as error:
        print(f"fleet-agent: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return 2 if error.code == "usage" else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fleet-agent", description="The fleet agent: runs networks on this device.")
    parser.add_argument("--version", action="version", version=f"fleet-agent {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    default_home = Path(os.environ.get("FLEET_AGENT_HOME", Path.home() / ".local/share/fleet-agent"))

    def command(name: str, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help)
        one.add_argument("--home", type=Path, default=default_home, help="its directory (default: %(default)s)")
        return one

    run = command("run", "run the agent until it is told to end")
    run.set_defaults(act=_run)
    run.add_argument("--name", default=socket.gethostname(), help="the device's name (default: this host's)")
    run.add_argument("--target", required=True, help="what kind of board this is, such as x86")
    run.add_argument("--listen", default="tcp://127.0.0.1:0", help="where to listen; port 0 picks a free one")
    run.add_argument("--rpc-port", default="0", help="port of the TVM RPC listener, 0 picks one, 'off' has none")
    run.add_argument("--rpc-host", default="127.0.0.1", help="address of the TVM RPC listener")
    run.add_argument("--rpc-key", default="", help="key of the TVM RPC listener (default: the target)")
    run.add_argument("--tracker", metavar="HOST:PORT", help="TVM tracker to register with")
    run.add_argument("--quota", type=int, default=0, metavar="BYTES", help="most the store may hold (0: the disk)")
    run.add_argument("--worker-memory", type=int, metavar="BYTES", help="most memory a worker process may take")
    run.add_argument("--worker-idle", type=float, metavar="SECONDS", help="how long a loaded model is kept unused")
    run.add_argument("--call-deadline", type=float, metavar="SECONDS", help="longest one call of a worker may take")
    run.add_argument("--simulated", action="store_true", help="this is a simulated board")
    faults = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    run.add_argument("--fault", action="append", default=[], metavar="KIND", help=f"simulated boards only; {faults}")

    authorize = command("authorize", "let a controller connect, and accept what it signs")
    authorize.set_defaults(act=_authorize)
    authorize.add_argument("curve", metavar="CURVE_PUB", help="its CURVE public key (40 characters)")
    authorize.add_argument("sign", metavar="SIGN_PUB", help="its Ed25519 public key (64 hex digits)")

    command("show", "show this agent's public key, and whether it runs").set_defaults(act=_show)
    return parser


# --- Commands -----------------------------------------------------------------------------------


def _keys_last(arguments: list[str]) -> list[str]:
    """Keys to authorize that begin with a minus stand where argparse takes nothing for an option."""
    for index, one in enumerate(arguments):
        if arguments[0] == "authorize" and one.startswith("-") and len(one) == _CURVE_TEXT:
            return [*arguments[:index], *arguments[index + 2 :], "--", *arguments[index : index + 2]]
    return arguments


def _run(options: argparse.Namespace) -> int:
    config = _config(options)
    if "refuse-start" in config.faults:
        raise FleetError("the fault refuse-start: this agent refuses to start", code="refused")
    os.umask(0o077)
    memory.prepare()
    config.home.create()
    if config.home.root.stat().st_mode & stat.S_IWGRP:
        # It is shared with its group: who brings blobs over SSH does so under a name of their own.
        os.umask(0o007)
    with _only_one(config.home):
        asyncio.run(_serve(config))
    return 0


def _authorize(options: argparse.Namespace) -> int:
    from targets.keys import key_id

    home = Home(options.home.absolute())
    home.create()
    curve: str = options.curve.strip()
    sign: str = options.sign.strip().lower()
    try:
        import zmq.utils.z85

        if len(zmq.utils.z85.decode(curve)) != 32:
            raise ValueError
    except Exception:
        raise FleetError(f"'{curve}' is not a CURVE public key", code="usage", hint="see `fleet keys`") from None
    try:
        name = key_id(bytes.fromhex(sign))
        if len(bytes.fromhex(sign)) != 32:
            raise ValueError
    except ValueError:
        raise FleetError(f"'{sign}' is not an Ed25519 public key", code="usage", hint="see `fleet keys`") from None
    write_atomic(home.authorized / f"{name}.pub", f"{curve}\n".encode())
    write_atomic(home.trusted / f"{name}.pub", f"{sign}\n".encode())
    print(f"authorized {name}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from targets.keys import Keys

    home = Home(options.home.absolute())
    home.create()
    print(f"home        {home.root}")
    print(f"public key  {Keys(home.keys).curve_public.decode()}")
    print(f"authorized  {', '.join(read_keys(home.authorized)) or 'nobody'}")
    print(f"trusted     {', '.join(read_keys(home.trusted)) or 'anybody'}")
    try:
        info = read_info(home)
        print(f"running     {info.name} ({info.target}), process {info.pid}, port {info.port}")
    except FleetError:
        print("running     no")
    return 0


# --- Running ------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> Config:
    from targets import base

    base.find(options.target)
    faults = Faults.parse(options.fault)
    if faults.kinds and not options.simulated:
        raise FleetError("only a simulated board can have faults", code="usage", hint="add --simulated")
    if not options.listen.startswith("tcp://"):
        raise FleetError(f"'{options.listen}' is no address to listen on", code="usage", hint="tcp://127.0.0.1:0")
    given = {
        "worker_memory": options.worker_memory,
        "worker_idle": options.worker_idle,
        "call_deadline": options.call_deadline,
    }
    return Config(
        home=Home(options.home.absolute()),
        name=options.name,
        target=options.target,
        listen=options.listen,
        rpc_host=options.rpc_host,
        rpc_port=_rpc_port(options.rpc_port),
        rpc_key=options.rpc_key or options.target,
        tracker=_host_port(options.tracker) if options.tracker else None,
        # A simulator is no board, whoever started it.
        simulated=options.simulated or base.is_simulator(options.target),
        emulated=emulated_on(),
        faults=faults,
        quota=FULL_DISK_QUOTA if "disk-full" in faults else options.quota,
        **{name: value for name, value in given.items() if value is not None},
    )


def _rpc_port(text: str) -> int | None:
    if text == "off":
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise FleetError(f"'{text}' is not a port", code="usage", hint="a number, 0 for any, or off")
    return int(text)


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise FleetError(f"'{text}' is not HOST:PORT", code="usage")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Hold the home's lock, which the kernel drops with the process. Raises :class:`FleetError` when it is taken."""
    with home.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FleetError(f"an agent runs in {home.root} already", code="already-running") from None
        yield


async def _serve(config: Config) -> None:
    from agent.admission import TrustedKeys
    from agent.journal import Journal
    from agent.logs import set_up
    from agent.server import Server
    from agent.store import Store
    from targets.keys import Keys

    home = config.home
    book = set_up(home.log)
    home.info.unlink(missing_ok=True)
    keys = Keys(home.keys)
    store = Store(home.store, quota=config.quota, trusted=TrustedKeys(home.trusted))
    server = Server(config, keys, store, Journal(home.journal), book)
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        await server.start()
        server.rpc_port = await _start_rpc(config, server, keys.curve_public, stack)
        info = AgentInfo(
            name=config.name,
            target=config.target,
            pid=os.getpid(),
            port=server.router.port,
            rpc_port=server.rpc_port,
            public=keys.curve_public.decode(),
            simulated=config.simulated,
        )
        write_info(home, info)
        stack.callback(home.info.unlink, missing_ok=True)
        log.info("%s (%s) listens on %s", config.name, config.target, server.router.endpoint)
        waiting = [loop.create_task(end.wait()), loop.create_task(server.shutdown.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        log.info("the agent ends")


async def _start_rpc(config: Config, server: Server, public: bytes, stack: contextlib.AsyncExitStack) -> int:
    """Start the TVM RPC listener, if there is to be one. Returns its port, or 0."""
    if config.rpc_port is None:
        return 0
    from agent.rpc import RpcListener

    listener = RpcListener(
        host=config.rpc_host,
        port=config.rpc_port,
        key=config.rpc_key,
        tracker=config.tracker,
        agent_endpoint=server.router.endpoint,
        agent_public=public,
        grant=server.admission.grant,
        revoke=server.admission.revoke,
        device=config.name,
        root=config.home.rpc,
    )
    await listener.start()
    stack.push_async_callback(listener.stop)
    return listener.port


if __name__ == "__main__":
    sys.exit(main())
