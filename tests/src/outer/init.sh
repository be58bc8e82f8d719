#!/bin/sh
# Process 1 of the outer machine: prepares what a microVM monitor expects of a Linux host, runs the job's
# script, reports. Three virtio ports lead to the host: the first carries the script's output while it runs, the
# second the result at its end, the third a pulse.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
ip link set lo up
hostname outer
echo 1 > /proc/sys/net/ipv4/ip_forward
mkdir -p /dev/net /out
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
for node in /dev/kvm /dev/vhost-vsock /dev/net/tun /dev/fuse; do
    # Monitors drop to a user of their own, so these must be open to everybody, as udev makes them elsewhere.
    [ -e "$node" ] && chmod 666 "$node"
done
# The middle number of a port's name depends on the order in which the kernel found the devices.
if ! { console=$(ls /dev/vport*p1) && result=$(ls /dev/vport*p2) && pulse=$(ls /dev/vport*p3); }; then
    echo "outer: the ports to the host are missing"
    echo o > /proc/sysrq-trigger
    sleep 60
fi

# The pulse tells the host that this machine still runs anything at all.
while :; do
    echo
    sleep 2
done > "$pulse" &

# Files of a host user who is not root would otherwise keep that user's numbers here.
[ -e /job/chown ] && find / -xdev ! -user 0 -exec chown -h 0:0 {} +

# A pipe between script and port: a port can be opened only once, and scripts reopen their output (`>
# /dev/stderr`).
mark=$(cat /job/mark)
mkfifo -m 666 /run/console
awk -v mark="$mark" '{ print; fflush() } index($0, mark) { exit }' < /run/console > "$console" &
forwarder=$!
exec 3> /run/console
. /job/env
cd /root
sh /job/script < /dev/null > /run/console 2>&1 3>&-
code=$?
printf '%s\n' "$mark" >&3
wait "$forwarder"
exec 3>&-

# The result: the exit code, then each file left in /out as a line with its size and name, its bytes, and at
# last the mark. `head` holds every file to the size in its line, also when something still writes to it.
{
    printf 'exit %s\n' "$code"
    cd /out && find . -type f | sort | while IFS= read -r name; do
        size=$(stat -c %s "$name")
        printf 'file %s %s\n' "$size" "${name#./}"
        head -c "$size" "$name"
    done
    printf 'end %s\n' "$mark"
} > "$result"

# The host ends the machine once it has read the mark; switching off is for a host that does not.
sleep 30
echo o > /proc/sysrq-trigger
sleep 60
