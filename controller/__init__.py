"""The host side: builds bundles, pushes them to devices, measures and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller.fleet import Fleet

__version__ = "0.1.0"
__all__ = ["Fleet", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that importing a light submodule (the command line's help) does not pull in the whole controller.
    if name == "Fleet":
        from controller.fleet import Fleet

        return Fleet
    raise AttributeError(f"module 'controller' has no attribute {name!r}")
