"""Where the controller keeps things: the XDG directories, or all of it below ``FLEET_HOME``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The controller's directories. None of them need exist: who writes makes what it needs."""

    #: What a person writes: ``fleet.yaml``.
    config: Path
    #: What must not be lost: keys and results.
    data: Path
    #: What can be made again: builds and downloads.
    cache: Path
    #: What belongs to this machine's running things: simulated boards, a tracker.
    state: Path

    @classmethod
    def find(cls, root: Path | None = None, environ: Mapping[str, str] = os.environ) -> Home:
        """Everything below ``root`` or ``$FLEET_HOME`` if one is given, else the XDG directories."""
        if root is None and environ.get("FLEET_HOME"):
            root = Path(environ["FLEET_HOME"])
        if root is not None:
            root = root.expanduser().absolute()
            return cls(config=root, data=root, cache=root / "cache", state=root)

        def xdg(variable: str, default: str) -> Path:
            # The XDG specification: a relative path is invalid and to be ignored.
            given = environ.get(variable, "")
            base = Path(given) if given.startswith("/") else Path.home() / default
            return base / "fleet"

        return cls(
            config=xdg("XDG_CONFIG_HOME", ".config"),
            data=xdg("XDG_DATA_HOME", ".local/share"),
            cache=xdg("XDG_CACHE_HOME", ".cache"),
            state=xdg("XDG_STATE_HOME", ".local/state"),
        )

    @property
    def keys(self) -> Path:
        """The controller's CURVE and signing keys."""
        return self.data / "keys"

    @property
    def tuned(self) -> Path:
        """What `fleet tune` found, a file for each processor."""
        return self.data / "tuned"

    @property
    def evaluations(self) -> Path:
        """Answers of evaluations that are not through."""
        return self.data / "evaluations"

    @property
    def sim(self) -> Path:
        """One folder per simulated board."""
        return self.state / "sim"

    @property
    def results_url(self) -> str:
        """SQLAlchemy URL of the results: ``$FLEET_RESULTS``, or an SQLite file below ``data``."""
        return os.environ.get("FLEET_RESULTS") or f"sqlite:///{self.data / 'results.db'}"

    def inventory(self, given: Path | None = None) -> Path:
        """The inventory to read: the one given, ``./fleet.yaml`` if there is one, else the one in ``config``."""
        if given is not None:
            return given
        here = Path("fleet.yaml")
        return here if here.exists() else self.config / "fleet.yaml"
