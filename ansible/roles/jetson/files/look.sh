# What of a Jetson matters, as lines KEY=VALUE.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\0\n\r' '   ')"; }
say look 1
say model "$(tr -d '\0' </proc/device-tree/model 2>/dev/null)"
say l4t "$(sed -n '1s/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' /etc/nv_tegra_release 2>/dev/null)"
say tegrastats "$(command -v tegrastats)"
say power "$(command -v nvpmodel >/dev/null && nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p')"
say torch "$(ls -d /usr/local/lib/python3*/dist-packages/torch /usr/lib/python3*/site-packages/torch /opt/venv/lib/python3*/site-packages/torch 2>/dev/null | head -n 1)"
say tensorrt "$(ls -d /usr/lib/aarch64-linux-gnu/libnvinfer.so.* 2>/dev/null | sed 's/.*so\.//' | head -n 1)"
exit 0
