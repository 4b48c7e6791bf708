# What is on a board, as lines KEY=VALUE. POSIX shell and the tools every Debian has; changes nothing, needs no Python.
# Arguments: paths, of which it says owner, group, mode and (of a file) the SHA-256 or (of a link) where it leads.
LC_ALL=C
export LC_ALL
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
first() { head -n 1 2>/dev/null; }

say look 1
say uid "$(id -u)"
say login "${SUDO_USER:-$(id -un)}"
say machine "$(uname -m)"
say now "$(date +%s)"
say os "$(. /etc/os-release 2>/dev/null; echo "${PRETTY_NAME:-unknown}")"

# The first Python that is new enough, else the best there is: python3 of an old image may have a newer one beside it.
ask='import platform,struct,sys; print(sys.executable, "%d.%d" % sys.version_info[:2], struct.calcsize("P") * 8, "-".join(platform.libc_ver()), "%d" % (sys.version_info >= (3, 10)))'
found=
for name in ${FLEET_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
  at=$(command -v "$name" 2>/dev/null) || continue
  line=$("$at" -I -c "$ask" 2>/dev/null) || continue
  case $line in *" 1") found=$line; break ;; esac
  [ -n "$found" ] || found=$line
done
say python "$found"

# Free KiB where the agent and its data go.
for at in /opt /var/lib /tmp; do say "free:$at" "$(df -Pk "$at" 2>/dev/null | awk 'NR == 2 { print $4 }')"; done
say memory "$(sed -n 's/^MemTotal: *\([0-9]*\) .*/\1/p' /proc/meminfo)"
say swap "$(sed -n 's/^SwapTotal: *\([0-9]*\) .*/\1/p' /proc/meminfo)"

if [ -d /run/systemd/system ]; then say service systemd; else say service script; fi
if [ -d /run/systemd/system ]; then
  say enabled "$(systemctl is-enabled fleet-agent.service 2>/dev/null)"
  say ntp "$(timedatectl show -p NTPSynchronized --value 2>/dev/null)"
fi
if command -v ufw >/dev/null && ufw status 2>/dev/null | grep -q '^Status: active'; then
  say firewall ufw
  say open "$(ufw status | sed -n 's/^\([0-9]*\)\/tcp .*ALLOW.*/\1/p' | sort -u)"
elif command -v firewall-cmd >/dev/null && firewall-cmd --state >/dev/null 2>&1; then
  say firewall firewalld
  say open "$(firewall-cmd --permanent --list-ports | tr ' ' '\n' | sed -n 's/^\([0-9]*\)\/tcp$/\1/p')"
elif command -v nft >/dev/null && nft list ruleset 2>/dev/null | grep -q 'hook input.*'; then
  say firewall nftables
else
  say firewall none
fi

say user "$(getent passwd fleet)"
say groups "$(id -Gn fleet 2>/dev/null)"
say login_groups "$(id -Gn "${SUDO_USER:-root}" 2>/dev/null)"
say hardware_groups "$(getent group video render HwHiAiUser gpio i2c 2>/dev/null | cut -d: -f1)"
say agent "$(readlink /opt/fleet/agent 2>/dev/null | sed 's|.*/||')"
say agents "$(for done in /opt/fleet/agents/*/.complete; do [ -e "$done" ] && basename "$(dirname "$done")"; done)"
pid=$(sed -n 's/^ *"pid": *\([0-9]*\),*$/\1/p' /var/lib/fleet/agent/agent.json 2>/dev/null | first)
# Which agent runs: that of the environment whose Python it is.
running=
[ -n "$pid" ] && running=$(tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | sed -n 's|^/opt/fleet/agents/\([^/]*\)/bin/.*|\1|p' | first)
say running "$running"

for path in "$@"; do
  if [ -L "$path" ]; then say "path:$path" "link $(readlink "$path")"
  elif [ -d "$path" ]; then say "path:$path" "directory $(stat -c '%U:%G %a' "$path")"
  elif [ -f "$path" ]; then say "path:$path" "file $(stat -c '%U:%G %a' "$path") $(sha256sum <"$path" | cut -d' ' -f1)"
  fi
done
