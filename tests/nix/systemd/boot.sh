#!/usr/bin/env bash
# A systemd as PID 1 of namespaces of its own, which ends when its script does:
#
#   boot.sh DIR SCRIPT      DIR: units, bound to /run/units; SCRIPT runs as a service, its output goes to DIR/log
#
# The machine's files are read-only in it, /tmp, /run, /var and /dev are its own, and of systemd's own units it has
# journald alone: nothing that tidies, mounts or sets the machine's parameters. Needs root, cgroup2 and bubblewrap.
set -euo pipefail
directory=$1 script=$2
unified=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
cgroup=$unified/enginix-test-$$
mkdir "$cgroup"
# What is left when the namespace's PID 1 is gone.
trap 'for _ in 1 2 3 4 5; do find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 1; done' EXIT

units=$directory/units
mkdir -p "$units"
for target in sysinit basic network multi-user shutdown local-fs sockets; do
  [ -e "$units/$target.target" ] || printf '[Unit]\nDefaultDependencies=no\n' >"$units/$target.target"
done
for unit in system.slice -.slice systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
  cp "/lib/systemd/system/$unit" "$units/" 2>/dev/null || true
done
cat >"$units/script.service" <<UNIT
[Unit]
Wants=systemd-journald.socket
After=systemd-journald.socket
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=PATH=$PATH
ExecStart=/bin/bash $script
StandardOutput=append:$directory/log
StandardError=append:$directory/log
TimeoutStartSec=300
UNIT
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$directory/machine-id"

# Mounts are shared, as every system's are: credentials are mounted by a child of systemd for all to see.
(
  echo "$BASHPID" >"$cgroup/cgroup.procs"
  exec timeout --kill-after=10 330 bwrap --die-with-parent \
    --unshare-pid --unshare-ipc --unshare-uts --unshare-net --unshare-cgroup --as-pid-1 --cap-add ALL \
    --ro-bind / / --proc /proc --ro-bind /proc/sys /proc/sys --dev /dev \
    --perms 1777 --tmpfs /tmp --tmpfs /run --tmpfs /var --perms 1777 --tmpfs /dev/shm \
    --bind "$cgroup" /sys/fs/cgroup --ro-bind "$directory/machine-id" /etc/machine-id \
    --bind "$directory" "$directory" --dir /run/systemd/system \
    --clearenv --setenv container enginix --setenv PATH "$PATH" \
    --setenv SYSTEMD_UNIT_PATH "/run/systemd/system:$units" \
    /bin/sh -c 'mount --make-rshared / && exec /lib/systemd/systemd "$@"' - \
    --unit=script.service --show-status=false --log-target=null
) </dev/null >"$directory/boot" 2>&1
