"""Every default that two parts must agree on, in one place.

Times are in seconds and sizes in bytes unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

# --- Liveness -----------------------------------------------------------------------------------
# A device is `online` while it answers, `suspect` after three missed heartbeats, `offline` after six.
HEARTBEAT_INTERVAL: Final = 5.0
SUSPECT_AFTER: Final = 15.0
OFFLINE_AFTER: Final = 30.0

# --- Leases -------------------------------------------------------------------------------------
# Long enough to survive two lost renewals, short enough that a dead controller frees the board soon.
LEASE_TTL: Final = 60.0
LEASE_RENEW_INTERVAL: Final = 20.0

# --- Reconnection -------------------------------------------------------------------------------
# Exponential with full jitter; for ever, because boards are switched off and come back.
RECONNECT_FIRST: Final = 0.25
RECONNECT_CAP: Final = 30.0

# --- Requests -----------------------------------------------------------------------------------
CONNECT_TIMEOUT: Final = 5.0
REQUEST_TIMEOUT: Final = 15.0

# --- Blobs --------------------------------------------------------------------------------------
# A chunk is what is lost when a connection is cut; the window is how many are in flight unacknowledged.
# Its size follows the link: it grows fourfold while a chunk is acknowledged quickly and halves when that takes long
# (seconds). Large ones cost an agent much less: the file system then takes large pages.
CHUNK_FIRST: Final = 256 << 10
CHUNK_SMALLEST: Final = 64 << 10
CHUNK_LARGEST: Final = 4 << 20
CHUNK_QUICK: Final = 0.25
CHUNK_SLOW: Final = 2.0
# In flight are this many small blobs, or two chunks: one on its way while the other is stored.
CHUNK_WINDOW: Final = 8
# What an agent accepts in one message, whatever the sender claims.
MAX_MESSAGE: Final = 16 << 20
MAX_MANIFEST: Final = 4 << 20
MAX_BLOB: Final = 4 << 30
MAX_BUNDLE: Final = 16 << 30
MAX_FILES: Final = 20_000
# Free space an agent keeps on its disk: a full disk must never corrupt the store.
DISK_RESERVE: Final = 32 << 20

# --- Workers ------------------------------------------------------------------------------------
WORKER_START_DEADLINE: Final = 60.0
WORKER_CALL_DEADLINE: Final = 120.0
# Address space above what the library and weights need is bounded per worker through resident memory.
WORKER_MEMORY_LIMIT: Final = 4 << 30
# A loaded model is kept for this long after its last use, so that `fleet run` twice does not load twice.
WORKER_IDLE_TIMEOUT: Final = 60.0

# --- TVM RPC ------------------------------------------------------------------------------------
RPC_SESSION_DEADLINE: Final = 3600.0
TRACKER_PING_INTERVAL: Final = 2.0

# --- Telemetry ----------------------------------------------------------------------------------
TELEMETRY_INTERVAL: Final = 1.0
# With nobody subscribed, telemetry is only taken for heartbeats: at rest an agent costs next to nothing.
TELEMETRY_IDLE_INTERVAL: Final = 5.0

# --- Bench protocol -----------------------------------------------------------------------------
BENCH_MIN_DURATION: Final = 2.0
BENCH_PERCENTILE: Final = 90.0
BENCH_WARMUP_MIN: Final = 0.3
BENCH_WARMUP_MAX: Final = 20.0
# Samples are sent on in batches of about this long, so that a live view moves but the accelerator is not disturbed.
BENCH_BATCH_SECONDS: Final = 0.2
# Share of the device's CPU that other processes may use before a run is called INVALID.
BENCH_MAX_OTHER_LOAD: Final = 0.25
# The warm-up is over when the median moves less than this between two windows, or less than noise explains;
# noise excuses no more than the second figure.
BENCH_STEADY: Final = 0.02
BENCH_STEADY_NOISE: Final = 0.10
# Clocks may fall by this share of their highest reading within a run, and the temperature may rise by this many kelvin.
BENCH_MAX_CLOCK_DROP: Final = 0.10
BENCH_MAX_TEMPERATURE_RISE: Final = 10.0

# --- Live view ----------------------------------------------------------------------------------
REDRAW_PER_SECOND: Final = 10
