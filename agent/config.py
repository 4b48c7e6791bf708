"""What one agent is told when it starts, where its files lie, and what it tells others about itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.faults import Faults
from targets.base import FleetError
from targets.defaults import WORKER_CALL_DEADLINE, WORKER_IDLE_TIMEOUT, WORKER_MEMORY_LIMIT, WORKER_START_DEADLINE
from targets.files import write_atomic

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Home:
    """The agent's directory. Nothing outside of it is ever written."""

    root: Path

    @property
    def info(self) -> Path:
        return self.root / "agent.json"

    @property
    def lock(self) -> Path:
        return self.root / "agent.lock"

    @property
    def log(self) -> Path:
        return self.root / "agent.log"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def authorized(self) -> Path:
        """One ``*.pub`` file for each CURVE public key (z85) that may connect."""
        return self.root / "authorized"

    @property
    def trusted(self) -> Path:
        """One ``*.pub`` file for each Ed25519 public key (hex) whose bundles are accepted; empty accepts any."""
        return self.root / "trusted"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def rpc(self) -> Path:
        """Working directories of TVM RPC sessions; emptied at each start."""
        return self.root / "rpc"

    @property
    def work(self) -> Path:
        """Working directory of the workers; kept empty, so that nothing in it shadows a Python module."""
        return self.root / "work"

    @property
    def cache(self) -> Path:
        """What targets make on the board and can make again, and their scratch: ``FLEET_AGENT_CACHE`` in workers."""
        return self.root / "cache"

    def create(self) -> None:
        for directory in (self.root, self.authorized, self.trusted, self.work):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Config:
    home: Home
    name: str
    target: str
    listen: str = "tcp://127.0.0.1:0"
    rpc_host: str = "127.0.0.1"
    #: Port of the TVM RPC listener: 0 picks a free one, None has none.
    rpc_port: int | None = None
    rpc_key: str = ""
    tracker: tuple[str, int] | None = None
    simulated: bool = False
    faults: Faults = field(default_factory=Faults)
    #: Largest number of bytes the store may take; 0 is bounded by the disk alone.
    quota: int = 0
    worker_memory: int = WORKER_MEMORY_LIMIT
    worker_idle: float = WORKER_IDLE_TIMEOUT
    start_deadline: float = WORKER_START_DEADLINE
    call_deadline: float = WORKER_CALL_DEADLINE
    #: The machine underneath when this processor is emulated.
    emulated: str = ""

    @property
    def no_board(self) -> bool:
        """Whether what this agent tells is no board's, and says so: a simulated one's, or an emulated processor's."""
        return self.simulated or bool(self.emulated)


class AgentInfo(msgspec.Struct, kw_only=True):
    """``agent.json``: how to reach the agent that runs in this home. ``public`` is its CURVE key (z85)."""

    name: str
    target: str
    pid: int
    port: int
    rpc_port: int
    public: str
    simulated: bool
    version: str = VERSION
    started: float = 0.0


def write_info(home: Home, info: AgentInfo) -> None:
    info.started = info.started or time.time()
    write_atomic(home.info, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n", mode=0o640)


def read_info(home: Home) -> AgentInfo:
    """Raises :class:`FleetError` (``not-running``) when there is no agent's file, or not a readable one."""
    try:
        return msgspec.json.decode(home.info.read_bytes(), type=AgentInfo)
    except FileNotFoundError:
        raise FleetError(f"no agent runs in {home.root}", code="not-running") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise FleetError(f"cannot read {home.info}: {error}", code="not-running") from None


def read_keys(directory: Path) -> dict[str, str]:
    """Contents of the ``*.pub`` files in ``directory``, by file name; what cannot be read is left out."""
    keys: dict[str, str] = {}
    if not directory.is_dir():
        return keys
    for file in sorted(directory.glob("*.pub")):
        try:
            with file.open() as handle:
                keys[file.stem] = handle.read(4096).strip()
        except (OSError, UnicodeDecodeError):
            continue
    return keys
