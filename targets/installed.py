"""Versions of installed distributions, by the names that bundles ask for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

#: What boards have in place of a whole distribution, at the same version: `fleet runtime build` makes it.
STAND_INS = {"apache-tvm": "fleet-tvm-runtime"}


def installed(name: str) -> str:
    """The version of ``name``, or of what stands in for it on a board; empty where neither is."""
    for one in (name, STAND_INS.get(name, "")):
        if one:
            try:
                return version(one)
            except PackageNotFoundError:
                continue
    return ""
