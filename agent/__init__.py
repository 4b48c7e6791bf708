"""The daemon on a device: takes bundles, proves them, serves and measures them."""

__version__ = "0.1.0"
