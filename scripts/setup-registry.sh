#!/usr/bin/env bash
# Unpacks Debian's docker-registry, the server that the OCI store is tested on, into the folder given. It is not installed,
# as it would start by itself then. Running this again costs nothing and changes nothing.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 1; }
mkdir -p "$1"
cd "$1"
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi; }

[ ! -x usr/bin/docker-registry ] || exit 0
printf 'setup: unpacking docker-registry into %s\n' "$1"
apt-cache show docker-registry >/dev/null 2>&1 || as_root apt-get update -qq
rm -rf ./unpacked ./*.deb
apt-get download -qq docker-registry
dpkg-deb --extract docker-registry_*.deb unpacked
rm -f ./*.deb
mv unpacked/usr .
rm -rf unpacked
