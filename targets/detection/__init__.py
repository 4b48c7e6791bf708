"""Detectors: the operators that find boxes among thousands, the same for every target."""
