"""Boards behind an SSH server: one connection carries commands, files and the agent's ports; only sshd is open."""
