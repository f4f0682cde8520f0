#!/usr/bin/env bash
# Installs OpenStack's Glance and Keystone, the servers that the Glance store is tested on, into an environment of their own in
# the folder given, with fresh databases for tests to copy. Running it again costs nothing and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 1; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
wanted=$(cat scripts/setup-glance.sh tests/drivers/glance.txt)

[ "$(cat "$folder/installed.txt" 2>/dev/null)" != "$wanted" ] || exit 0
printf 'setup: installing OpenStack Glance and Keystone into %s\n' "$folder"
rm -f "$folder/installed.txt"
"${PYTHON:-python3}" -m venv --clear "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -r tests/drivers/glance.txt

# --- databases that know nobody but Keystone's first administrator ----------------------------------------------------
configuration=$folder/setup.conf
mkdir -m 700 "$folder/keys"
quietly() { "$@" >"$folder/setup.log" 2>&1 || { cat "$folder/setup.log" >&2; exit 1; }; }
configure() {
    printf '%s\n' '[database]' "connection = sqlite:///$folder/$1.sqlite" '[fernet_tokens]' "key_repository = $folder/keys" \
        '[fernet_receipts]' "key_repository = $folder/keys" '[identity]' 'password_hash_rounds = 4' >"$configuration"
}
configure glance
quietly "$folder/bin/glance-manage" --config-file "$configuration" db sync
configure keystone
quietly "$folder/bin/keystone-manage" --config-file "$configuration" db_sync
quietly "$folder/bin/keystone-manage" --config-file "$configuration" fernet_setup \
    --keystone-user "$(id -un)" --keystone-group "$(id -gn)"
quietly "$folder/bin/keystone-manage" --config-file "$configuration" bootstrap --bootstrap-password administrator
rm -f "$configuration" "$folder/setup.log"
printf '%s\n' "$wanted" >"$folder/installed.txt"
