"""The VTA accelerator: its configuration and instruction set, the compiler, the checker, the simulators, the drivers.

From a network to a program: `partition` finds what the accelerator can compute (`graph`), `quantise` makes integers
of it (`qgraph`), `lower` makes instructions (`isa`) of that and packs them with their data into a `program`, `checker`
proves that the program is safe. `simulator` computes what it computes, `cycles` how long a board would take.
`executable` runs it on a `driver`: the simulator's, or the board's in `targets.pynq`.
"""
