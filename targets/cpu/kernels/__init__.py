"""Kernels written as TIR, loop by loop: what a compiler would have to find out is said here.

Every kernel is a frozen specification (shapes, layouts, tile, pointwise program) and a function from it to a
``tirx.PrimFunc``; equal specifications are one kernel in the library.
"""
