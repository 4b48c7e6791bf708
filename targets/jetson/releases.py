"""Releases of Jetson Linux (L4T), what is in them, and the modules: as data.

From NVIDIA's pages of the JetPacks and from the lists in jetson_stats and jetson-containers, which differ about 36.5.0
(6.2.1 or 6.2.2) and 39.2.0 (called 39.1.0 by one). Versions that no page was found for are empty.
"""

from __future__ import annotations

from typing import NamedTuple


class Release(NamedTuple):
    """One L4T. Versions are those that its JetPack installs; a board may have others beside them."""

    l4t: str
    jetpack: str
    cuda: str
    tensorrt: str


RELEASES = (
    Release("32.1.0", "4.2", "10.0", "5.0"),
    Release("32.2.0", "4.2.1", "10.0", "5.1"),
    Release("32.3.1", "4.3", "10.0", "6.0"),
    Release("32.4.3", "4.4", "10.2", "7.1"),
    Release("32.4.4", "4.4.1", "10.2", "7.1"),
    Release("32.5.0", "4.5", "10.2", "7.1"),
    Release("32.5.1", "4.5.1", "10.2", "7.1"),
    Release("32.6.1", "4.6", "10.2", "8.0"),
    Release("32.7.1", "4.6.1", "10.2", "8.2"),
    Release("32.7.2", "4.6.2", "10.2", "8.2"),
    Release("32.7.3", "4.6.3", "10.2", "8.2"),
    Release("32.7.4", "4.6.4", "10.2", "8.2"),
    Release("32.7.5", "4.6.5", "10.2", "8.2"),
    Release("32.7.6", "4.6.6", "10.2", "8.2"),
    Release("35.1.0", "5.0.2", "11.4", "8.4.1"),
    Release("35.2.1", "5.1", "11.4", "8.5.2"),
    Release("35.3.1", "5.1.1", "11.4", "8.5.2"),
    Release("35.4.1", "5.1.2", "11.4", "8.5.2"),
    Release("35.5.0", "5.1.3", "11.4", "8.5.2"),
    Release("35.6.0", "5.1.4", "11.4", "8.5.2"),
    Release("35.6.1", "5.1.5", "11.4", "8.5.2"),
    Release("35.6.2", "5.1.5", "11.4", "8.5.2"),
    Release("35.6.3", "5.1.5", "11.4", "8.5.2"),
    Release("35.6.4", "5.1.6", "11.4", "8.5.2"),
    Release("36.2.0", "6.0 DP", "12.2", "8.6"),
    Release("36.3.0", "6.0", "12.2", "8.6.2"),
    Release("36.4.0", "6.1", "12.6", "10.3"),
    Release("36.4.2", "6.1", "12.6", "10.3"),
    Release("36.4.3", "6.2", "12.6", "10.3"),
    Release("36.4.4", "6.2.1", "12.6", "10.3"),
    Release("36.4.7", "6.2.1", "12.6", "10.3"),
    Release("36.5.0", "6.2.2", "12.6", "10.3"),
    Release("38.2.0", "7.0", "13.0", "10.13"),
    Release("38.2.1", "7.0", "13.0", "10.13"),
    Release("38.2.2", "7.0", "13.0", "10.13"),
    Release("38.4.0", "7.1", "13.0", "10.13"),
    Release("39.2.0", "7.2", "13.2", "10.16.2"),
    Release("39.2.1", "7.2.1", "13.2", "10.16.2"),
)
#: The JetPack that an L4T belongs to when it is not in the list.
SERIES = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


class Chip(NamedTuple):
    """A system on chip by its name in the device tree, and its GPU's compute capability."""

    compatible: str
    name: str
    sm: str


CHIPS = (
    Chip("nvidia,tegra210", "TX1", "5.3"),
    Chip("nvidia,tegra186", "TX2", "6.2"),
    Chip("nvidia,tegra194", "Xavier", "7.2"),
    Chip("nvidia,tegra234", "Orin", "8.7"),
    Chip("nvidia,tegra264", "Thor", "11.0"),
)
#: Modules by the beginning of their part's number; the longest that fits is meant.
MODULES = {
    "p3448": "Jetson Nano",
    "p3310": "Jetson TX2",
    "p3489": "Jetson TX2i",
    "p3636": "Jetson TX2 NX",
    "p2888": "Jetson AGX Xavier",
    "p3668": "Jetson Xavier NX",
    "p3701": "Jetson AGX Orin",
    "p3701-0000": "Jetson AGX Orin 32GB",
    "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB",
    "p3834": "Jetson Thor",
    "p3834-0008": "Jetson AGX Thor",
}
