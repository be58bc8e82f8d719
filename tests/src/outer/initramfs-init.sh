#!/bin/sh
# First program of the outer machine: loads the kernel modules in the order that the host worked out, then
# hands over to the root file system. Everything printed here lands in the kernel's console log.
mount -t proc proc /proc
mount -t devtmpfs dev /dev
# The archive holds no device nodes (making them takes root), so the kernel started this without any open
# files.
exec < /dev/console > /dev/console 2>&1
while read -r module; do
    insmod "/modules/$module" || echo "outer: cannot load $module"
done < /modules/order
tries=0
until [ -b /dev/vda ] || [ "$tries" -ge 100 ]; do
    tries=$((tries + 1))
    usleep 50000
done
mount -t ext4 -o noatime,nobarrier,noinit_itable /dev/vda /root || {
    echo "outer: cannot mount the root disk"
    poweroff -f
}
umount /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/outer-init
