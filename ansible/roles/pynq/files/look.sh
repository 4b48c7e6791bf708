# What of a PYNQ board matters, as lines KEY=VALUE.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\0\n\r' '   ')"; }
say look 1
say compatible "$(tr '\0' ' ' </proc/device-tree/compatible 2>/dev/null)"
say image "$(cat /etc/environment /etc/pynq_version /home/xilinx/REVISION 2>/dev/null | sed -n 's/.*\(PYNQ[^ "]*\).*/\1/p;s/^Release \(.*\)/\1/p' | head -n 1)"
python=
for at in $FLEET_PYNQ_PYTHON /usr/local/share/pynq-venv/bin/python3 /usr/bin/python3.6; do
  [ -z "$python" ] && [ -x "$at" ] && python=$at
done
say python "$python"
say pynq "$(ls -d "${python%/bin/*}"/lib/python3*/site-packages/pynq /usr/local/lib/python3*/dist-packages/pynq 2>/dev/null | head -n 1)"
say manager "$(cat /sys/class/fpga_manager/fpga0/name 2>/dev/null)"
say sudo "$(command -v sudo)"
say visudo "$(PATH=$PATH:/usr/sbin command -v visudo)"
store=$1; shift
for sha256 in "$@"; do
  for at in "$store/blobs/$(printf %.2s "$sha256")/$sha256" "$store/incoming/$sha256"; do [ -f "$at" ] && say "bitstream:$sha256" "$at"; done
done
exit 0
