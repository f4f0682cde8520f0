#!/usr/bin/env bash
# Installs OpenStack Swift, the server that the S3 store is tested on, into an environment of its own in the folder given.
# Running it again costs nothing and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 1; }
folder=$1
wanted=tests/drivers/swift.txt

! cmp --silent "$wanted" "$folder/installed.txt" || exit 0
printf 'setup: installing OpenStack Swift into %s\n' "$folder"
"${PYTHON:-python3}" -m venv --clear "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$folder/installed.txt"
