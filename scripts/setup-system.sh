#!/usr/bin/env bash
# Makes this machine able to run planvirt: installs the Debian or Ubuntu packages that are missing and starts libvirt when it
# does not answer. With the argument "test" it also installs what only the tests need. Running it again costs less than a
# second and changes nothing.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.."
mode=${1-}
started=.demo/started # what this script started; `make demo-clean` stops that and nothing else

say() { printf 'setup: %s\n' "$1"; }
die() { # what, then what to do about it
    printf 'setup: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  %s\n' "${@:2}" >&2
    exit 1
}
can_be_root() { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }
may_use_system() { [ "$(id -u)" -eq 0 ] || [[ " $(id -nG) " == *" libvirt "* ]]; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi; }

packages=(
    git make python3-venv ca-certificates                                  # the project itself
    gcc libc6-dev pkg-config python3-dev libvirt-dev                       # to build libvirt-python
    libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
    qemu-system-x86 qemu-utils dnsmasq-base iproute2                       # the hypervisor and its network
    busybox-static qemu-guest-agent cpio xz-utils zstd                     # the test guest
)

case $mode in
    '') ;;
    test)
        # The tests start a PostgreSQL of their own, as an ordinary program.
        compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
        ;;
    *) die "cannot set up '$mode'" "say scripts/setup-system.sh, or scripts/setup-system.sh test" ;;
esac

# --- packages -----------------------------------------------------------------------------------------------------------
distribution=$( # shellcheck disable=SC1091
    . /etc/os-release 2>/dev/null && printf '%s %s' "${ID-}" "${ID_LIKE-}"
) || distribution=unknown
case " $distribution " in
    *" ubuntu "*) kernel_package=linux-image-virtual ;;
    *" debian "*) kernel_package=linux-image-cloud-amd64 ;;
    *)
        die "cannot install packages here: this is neither Debian nor Ubuntu" \
            "install by hand what these Debian packages hold, start libvirtd, then run 'make venv':" \
            "${packages[*]}" "and any Linux kernel with its modules (/boot/vmlinuz-VERSION, /lib/modules/VERSION)"
        ;;
esac
[ "$(dpkg --print-architecture)" = amd64 ] || die "cannot set up: the test guest needs an amd64 machine"

has_kernel() { # any kernel will do for the guest: the one this machine boots from stays the one it boots from
    local kernel
    for kernel in /boot/vmlinuz-*; do
        [ ! -e "/lib/modules/${kernel#/boot/vmlinuz-}/modules.dep" ] || return 0
    done
    return 1
}
has_kernel || packages+=("$kernel_package")

missing=()
while read -r package; do missing+=("$package"); done < <(
    comm -13 <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null | sed -n 's/^installed //p' | sort -u) \
        <(printf '%s\n' "${packages[@]}" | sort -u)
)
if [ ${#missing[@]} -eq 0 ]; then
    say "all packages are installed"
else
    can_be_root || die "cannot install packages as an ordinary user without sudo" "as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then # its package makes a cluster and starts it, unless told not to
        no_cluster=/etc/postgresql-common/createcluster.d/planvirt-setup.conf
        trap 'as_root rm -f "$no_cluster"' EXIT
        as_root mkdir -p "${no_cluster%/*}"
        as_root tee "$no_cluster" >/dev/null <<<"create_main_cluster = off"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    say "packages are installed"
fi

# --- libvirt ------------------------------------------------------------------------------------------------------------
answers() { timeout 10 virsh --quiet --connect "$1" version >/dev/null 2>&1; }
alive() { [ -s "$1" ] && [ -d "/proc/$(cat "$1")" ]; }

start_by_hand() { # a daemon, in a container that has no systemd
    alive "/run/$1.pid" && return
    say "starting $1"
    as_root "$1" --daemon
    for _ in $(seq 50); do
        ! alive "/run/$1.pid" || break
        sleep 0.1
    done
    mkdir -p "$started"
    cp "/run/$1.pid" "$started/$1.pid"
}

wait_for_libvirt() {
    for _ in $(seq 60); do
        ! answers qemu:///system || return 0
        sleep 0.5
    done
    return 1
}

uri=qemu:///system
if ! answers $uri && may_use_system && can_be_root; then
    if [ -d /run/systemd/system ]; then
        say "starting libvirtd with systemctl"
        as_root systemctl start libvirtd || true
    else
        start_by_hand virtlogd
        start_by_hand libvirtd
    fi
    wait_for_libvirt || die "cannot reach libvirtd: it was started, but does not answer at $uri" \
        "see what it says: journalctl -u libvirtd, or run 'libvirtd --verbose' in the foreground"
fi
if ! answers $uri; then
    uri=qemu:///session
    say "no access to qemu:///system; planvirt will use $uri"
    may_use_system || say "for the system's libvirt: sudo usermod --append --groups libvirt $(id -un), then log in again"
    answers $uri || die "cannot reach libvirt at qemu:///system nor at $uri" "see what it says: virsh -c $uri version"
fi
say "libvirt answers at $uri"

# --- its default network: good to have, and only the system's libvirt can have it --------------------------------------
network() { timeout 30 virsh --quiet --connect $uri "$@" 2>&1; }
if [ $uri = qemu:///system ]; then
    definition=/usr/share/libvirt/networks/default.xml
    network net-info default >/dev/null || { [ -r $definition ] && network net-define $definition >/dev/null; } || true
    if [[ "$(network net-info default)" =~ Active:\ *yes ]]; then
        say "network 'default' is active"
    elif why=$(network net-start default); then
        mkdir -p "$started" && touch "$started/network"
        say "network 'default' is started"
    else
        say "network 'default' could not be started; instances can still use 'user' networks (${why//$'\n'/ })"
    fi
fi
