#!/bin/bash
# Make the mounts of a machine, and become its process 1. tests/booted/machine.py calls it in new namespaces.
#
#   boot.sh FOLDER DEBIAN SOURCE:TARGET...
set -eu
root="$1"
debian="$2"
shift 2
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$debian,upperdir=$root/upper,workdir=$root/work" "$root/merged"
cd "$root/merged"
# Nix's store and database of this machine, below a layer of their own.
mkdir -p nix
mount -t overlay overlay -o "lowerdir=/nix,upperdir=$root/nix-upper,workdir=$root/nix-work" nix
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<< "$node"
  mknod -m 666 "dev/$name" c "$major" "$minor"
done
mknod -m 600 dev/console c 1 3
mknod -m 660 dev/loop0 b 7 0
# The nodes of NVIDIA's driver. Without the driver, opening one ends with ENXIO; if a sandbox denies it, with EPERM.
# The kernel's list of drivers is a file here, since systemd reads there which numbers a name has.
cp "$root/devices" run/devices
mount --bind run/devices proc/devices
mkdir dev/nvidia-caps
while read -r name major minor; do
  mknod -m 666 "dev/$name" c "$major" "$minor"
done < "$root/nodes"
# In place of the firmware's variables.
mount -t tmpfs tmpfs sys/firmware
mkdir -p sys/firmware/efi/efivars
mkdir dev/pts dev/shm dev/net
mknod -m 666 dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for pair in "$@"; do
  mkdir -p ".${pair#*:}"
  mount --bind "${pair%%:*}" ".${pair#*:}"
done
# As on NixOS, the store is read-only, and only the daemon of Nix writes it.
mount --bind nix/store nix/store
mount -o remount,ro,bind nix/store
ip link set lo up
# Not chroot: the kernel allows no user namespace (PrivateUsers) in a process with another root.
pivot_root . mnt
umount -l /mnt
# As systemd does on a machine, and nspawn in a container: a unit gets its credentials by propagation.
mount --make-rshared /
exec /usr/bin/env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=basic.target --show-status=no
