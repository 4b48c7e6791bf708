"""The command ``vta``: the accelerator's own tools, and its simulator as a CI mode."""
