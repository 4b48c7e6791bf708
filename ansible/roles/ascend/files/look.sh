# What of a board with an Ascend processor matters, as lines KEY=VALUE.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\0\n\r' '   ')"; }
say look 1
say driver "$(sed -n 's/^[Vv]ersion=\(.*\)/\1/p' /usr/local/Ascend/driver/version.info 2>/dev/null | head -n 1)"
say devices "$(ls /dev/davinci[0-9]* 2>/dev/null)"
say npu_smi "$(PATH=$PATH:/usr/local/sbin:/usr/local/bin command -v npu-smi)"
env=
for at in $FLEET_ASCEND_ENV /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/nnrt/set_env.sh; do
  [ -z "$env" ] && [ -f "$at" ] && env=$at
done
say set_env "$env"
say writable "$([ -n "$env" ] && find -L "$env" -perm -o+w 2>/dev/null)"
say group "$(getent group HwHiAiUser | cut -d: -f1)"
exit 0
