"""Turning a bare board into a device: what its agent is made of, and the playbooks that put it there."""
