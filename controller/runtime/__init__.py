"""TVM's runtime for boards: a small wheel without a compiler, cross-compiled from what TVM's own wheels carry.

`sources` says what of the installed wheels is taken, `cpython` how Python's headers are made to fit another processor,
`objects` compiles, `wheel` packs, `build` does all of it; `extension` does the same for a package that has no wheel for
a board. ``headers/`` are the few that TVM's wheels leave out, written for this; ``device/`` is what stands in for the
``__init__`` of the whole TVM.
"""
