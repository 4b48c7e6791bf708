#!/bin/sh
# The first process of a board, in namespaces of its own: board_init.sh LOWER FOLDER NAME MEGABYTES
#
# LOWER is a root file system that is not changed; what the board writes lies below FOLDER, or, where MEGABYTES is not
# 0, on a disk of that size that is empty at every start. A line on standard input says that the network is there.
# Everything ends with this process: what runs, what is mounted, and the network.
set -eu
lower=$1 folder=$2 name=$3 megabytes=$4
root=$folder/root disk=$folder/disk
mkdir -p "$root" "$disk"
hostname "$name"
[ "$megabytes" = 0 ] || mount -t tmpfs -o "size=${megabytes}m,mode=755" disk "$disk"
mkdir -p "$disk/upper" "$disk/work"
mount -t overlay -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" board "$root"
[ ! -d "$folder/files" ] || cp -a "$folder/files/." "$root/"

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom tty; do
  : > "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/sshd"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# What the processor is called, and what it can do: qemu shows the host's.
[ ! -f "$folder/cpuinfo" ] || mount --bind "$folder/cpuinfo" "$root/proc/cpuinfo"

if [ -x "$root/lib/systemd/systemd" ]; then
  # A control group of its own, which systemd divides among its services; all it sees of them.
  mkdir -p "$folder/groups"
  mount -t cgroup2 cgroup2 "$folder/groups"
  group=$(mktemp -d "$folder/groups/fleet-board.XXXXXX")
  echo 0 > "$group/cgroup.procs"
  umount "$folder/groups"
fi

# Its root is that of the namespace, and not of a chroot: in one of those a service may not have its own users.
cd "$root"
pivot_root . mnt
umount -l /mnt

echo mounted
read -r _
if [ -x /lib/systemd/systemd ]; then
  exec unshare --cgroup sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec env -i container=fleet /lib/systemd/systemd --log-target=journal' >/dev/null
fi
# As at the end of any boot without systemd.
[ ! -x /etc/rc.local ] || /etc/rc.local </dev/null &
while :; do
  /usr/sbin/sshd -D -e </dev/null || true
  sleep 1
done
