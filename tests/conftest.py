"""Signals as at a terminal, however the tests were started.

A shell that starts something in the background, and `nohup`, have signals ignored; every process that a test starts
would inherit that, and no test could interrupt it.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
