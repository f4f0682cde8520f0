#!/usr/bin/env bash
# Builds the smallest guest that behaves like a virtual machine, without network or root: Debian's own kernel, busybox,
# QEMU's guest agent and an empty disk. Tests and the demo boot it; it is up in a few seconds even under software emulation.
#
# Kernel command line:  planvirt.name=NAME         the name it reports
#                       planvirt.write=TEXT        puts TEXT on the first sector of /dev/vda
#                       planvirt.fill=N            writes N MiB of random data to /dev/vda, after its first MiB
#                       planvirt.heartbeat=N       prints a line every N seconds
#                       planvirt.ignore-acpi       is deaf to the power button
#                       planvirt.no-agent          leaves the guest agent off
#                       planvirt.mount             mounts /dev/vdb at /mnt, with a new file system if it has none
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
umask 022

die() { # what, then what to do about it
    printf 'build-guest: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  %s\n' "${@:2}" >&2
    exit 1
}

[ $# -eq 1 ] || die "cannot build: one argument is needed, the folder for the guest" "usage: scripts/build-guest.sh OUTDIR"
install_hint="run scripts/setup-system.sh, it installs what is missing"
for tool in cpio gzip flock qemu-img sha256sum; do
    command -v "$tool" >/dev/null || die "cannot find '$tool'" "$install_hint"
done

find_kernel() { # the newest cloud kernel that has its modules, else the newest kernel of any kind
    local pattern path
    for pattern in '/boot/vmlinuz-*cloud*' '/boot/vmlinuz-*'; do
        while read -r path; do
            [ -e "/lib/modules/${path#/boot/vmlinuz-}/modules.dep" ] && printf '%s\n' "$path" && return
        done < <(compgen -G "$pattern" | sort -rV)
    done
    return 1
}

kernel=$(find_kernel) || die "cannot find a kernel with its modules under /boot" "$install_hint"
[ -r "$kernel" ] || die "cannot read $kernel" "allow it once: sudo chmod +r $kernel" "or run this script with sudo"
release=${kernel#/boot/vmlinuz-}
modules=/lib/modules/$release

busybox=$(command -v busybox) || die "cannot find busybox" "$install_hint"
! ldd "$busybox" >/dev/null 2>&1 || die "cannot use $busybox: it needs shared libraries" "install the package busybox-static"

agent=$(command -v qemu-ga) || die "cannot find qemu-ga, QEMU's guest agent" "$install_hint"
mapfile -t libraries < <(ldd "$agent" | grep -o '/[^ ]*') # the loader is one of them

mkdir -p "$1"
out=$(cd "$1" && pwd)
exec 9>"$out/.lock"
flock 9
key="$release $(cat -- "$0" "$kernel" "$busybox" "$agent" "${libraries[@]}" | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ] && (cd "$out" && sha256sum --quiet --check SHA256SUMS) >/dev/null 2>&1; then
    printf 'guest is up to date: %s (Linux %s)\n' "$out" "$release"
    exit 0
fi

work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,etc/acpi/PWRF,lib/modules,mnt,proc,run,sys,tmp,www}

# --- programs ---------------------------------------------------------------------------------------------------------
cp "$busybox" "$root/bin/busybox"
while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done < <("$busybox" --list)
cp "$agent" "$root/bin/qemu-ga"
for library in "${libraries[@]}"; do # where this machine's loader looks, the guest's does, too
    mkdir -p "$root${library%/*}"
    cp --dereference "$library" "$root$library"
done

# --- modules, in the order in which they must be loaded -----------------------------------------------------------------
declare -A seen=()
order=()

unpack() { # a module file, whatever this kernel's packager compresses with
    case $1 in
        *.xz) xz -dc "$1" ;;
        *.zst) zstd -qdc "$1" ;;
        *.gz) gzip -dc "$1" ;;
        *) cat "$1" ;;
    esac
}

add_file() { # a path below $modules, copied once
    local name=${1##*/}
    name=${name%%.ko*}.ko
    [ -z "${seen[$name]-}" ] || return 0
    seen[$name]=1
    unpack "$modules/$1" >"$root/lib/modules/$name"
    order+=("$name")
}

add_module() { # a module by name, after the modules it needs; nothing to do for one that is built in
    local name=${1//_/[-_]} line path needed i
    grep -Eq "/$name\.ko$" "$modules/modules.builtin" && return
    line=$(grep -E "/$name\.ko[.a-z]*:" "$modules/modules.dep" | head -n 1) || die "cannot find module $1 of Linux $release"
    path=${line%%:*}
    # modules.dep lists every dependency, the innermost last
    read -ra needed <<<"${line#*:}"
    for ((i = ${#needed[@]} - 1; i >= 0; i--)); do add_file "${needed[i]}"; done
    add_file "$path"
}

for module in virtio_pci virtio_blk virtio_console virtio_net virtio_balloon button evdev af_packet ext4; do add_module "$module"; done
printf '%s\n' "${order[@]}" >"$root/lib/modules/order"

# --- what the guest does ------------------------------------------------------------------------------------------------
cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
[ -c /dev/ttyS0 ] && exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order

name=guest write= fill= heartbeat= ignore_acpi= no_agent= mount=
for word in $(cat /proc/cmdline); do
    case $word in
        planvirt.name=*) name=${word#*=} ;;
        planvirt.write=*) write=${word#*=} ;;
        planvirt.fill=*) fill=${word#*=} ;;
        planvirt.heartbeat=*) heartbeat=${word#*=} ;;
        planvirt.ignore-acpi) ignore_acpi=1 ;;
        planvirt.no-agent) no_agent=1 ;;
        planvirt.mount) mount=1 ;;
    esac
done
hostname "$name"

agent_port() { # names the device of the agent's channel; the host tells what it is a moment after the driver is loaded
    local file found tries=0
    set -- /sys/bus/virtio/drivers/virtio_console/virtio*
    [ -e "$1" ] || return
    until [ $tries -eq 20 ]; do
        for file in /sys/class/virtio-ports/*/name; do
            [ -e "$file" ] && read -r found <"$file" && [ "$found" = org.qemu.guest_agent.0 ] || continue
            file=${file%/name}
            echo "/dev/${file##*/}"
            return
        done
        tries=$((tries + 1))
        usleep 50000
    done
}

start_agent() { # on the port $1; the host can speak to it as soon as the port is open
    local tries=0
    (while :; do qemu-ga --method=virtio-serial --path="$1" --statedir=/run --fsfreeze-hook=/etc/fsfreeze; sleep 1; done) \
        </dev/null >/run/qemu-ga.log 2>&1 &
    until [ $tries -eq 100 ] || ls -l /proc/$(pidof qemu-ga)/fd 2>/dev/null | grep -q "$1"; do
        tries=$((tries + 1))
        usleep 20000
    done
}

# whoever sees "guest up" may press the power button or copy the disk at once, so that line comes last
[ -n "$ignore_acpi" ] || acpid -l /dev/null

if [ -b /dev/vda ]; then
    marker=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\0')
    case $marker in
        planvirt:*) echo "disk says: ${marker#planvirt:}" ;;
        *) echo "disk is empty" ;;
    esac
    if [ -n "$write" ]; then
        if printf 'planvirt:%s' "$write" | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null; then
            echo "disk written: $write"
        else
            echo "disk cannot be written"
        fi
    fi
fi

if [ -n "$mount" ] && [ -b /dev/vdb ]; then
    if mount -t ext4 /dev/vdb /mnt 2>/dev/null || { mke2fs /dev/vdb && mount -t ext4 /dev/vdb /mnt; } >/dev/null 2>&1; then
        echo "disk mounted: /dev/vdb"
    else
        echo "disk cannot be mounted"
    fi
fi

ip link set lo up
echo "$name" >/www/index.html
httpd -p 8080 -h /www
(
    until [ -e /sys/class/net/eth0 ]; do sleep 1; done
    ip link set eth0 up
    exec udhcpc -f -i eth0 -s /etc/udhcpc -x "hostname:$name" -t 5 -T 1 -A 5 >/dev/null 2>&1
) &

if [ -z "$no_agent" ]; then
    port=$(agent_port)
    [ -z "$port" ] || start_agent "$port"
fi

echo "planvirt guest up: $name"

if [ -n "$fill" ]; then
    if dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count="$fill" conv=fsync 2>/dev/null; then
        echo "disk filled: $fill MiB"
    else
        echo "disk cannot be filled"
    fi
fi
if [ -n "$heartbeat" ]; then
    beat=0
    while sleep "$heartbeat"; do beat=$((beat + 1)); echo "heartbeat $beat"; done &
fi
while :; do sleep 86400 & wait $!; done
INIT

cat >"$root/etc/udhcpc" <<'DHCP'
#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -z "$router" ] || ip route replace default via "${router%% *}"
[ "$1" = renew ] || echo "network up: $ip" >/dev/ttyS0
DHCP

cat >"$root/etc/fsfreeze" <<'FREEZE'
#!/bin/sh
echo "file systems: $1" >/dev/ttyS0
FREEZE

cat >"$root/etc/acpi/PWRF/00000080" <<'POWER'
#!/bin/sh
echo "power button" >/dev/ttyS0
sync
poweroff -f
POWER
chmod 755 "$root/init" "$root/etc/udhcpc" "$root/etc/fsfreeze" "$root/etc/acpi/PWRF/00000080"

# --- the three files: the same input gives the same bytes ----------------------------------------------------------------
find "$root" -exec touch --no-dereference --date=@0 {} +
(cd "$root" && find . -mindepth 1 -print0 | sort -z | cpio --null --create --format=newc --owner=0:0 --reproducible --quiet) |
    gzip -n -9 >"$work/initrd.img"
cp "$kernel" "$work/vmlinuz"
chmod 644 "$work/vmlinuz"
qemu-img create -q -f qcow2 "$work/disk.qcow2" 64M
(cd "$work" && sha256sum vmlinuz initrd.img disk.qcow2 >SHA256SUMS)

rm -f "$out/.key"
for file in vmlinuz initrd.img disk.qcow2 SHA256SUMS; do mv -f "$work/$file" "$out/$file"; done
printf '%s\n' "$key" >"$out/.key"
printf 'guest is built: %s (Linux %s)\n' "$out" "$release"
