"""The command line: a thin layer over `controller.fleet`. One file per group of commands; heavy imports on use only."""
