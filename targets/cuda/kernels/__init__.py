"""Kernels for a GPU, written as TIR that binds its own threads."""
