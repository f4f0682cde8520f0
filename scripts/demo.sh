#!/usr/bin/env bash
# The demo: a plan that succeeds and one that fails and is undone, on real virtual machines. All of it lives in .demo and in
# a storage pool of its own; `demo.sh clean` removes both.
set -euo pipefail
cd "$(dirname "$0")/.."
demo=$PWD/.demo
pool=planvirt-demo
plans=(plans/demo-rollback.yaml plans/demo.yaml)

export PLANVIRT_HOME=$demo/home PLANVIRT_CONFIG=$demo/planvirt.toml PREFECT_HOME=$demo/home/prefect
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1

planvirt() { .venv/bin/planvirt "$@"; }
heading() { if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then printf '\n\e[1;36m== %s\e[0m\n' "$1"; else printf '\n== %s\n' "$1"; fi; }
die() { # what, then what to do about it
    printf 'demo: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  %s\n' "${@:2}" >&2
    exit 1
}
libvirt_uri() { if timeout 10 virsh -q -c qemu:///system version >/dev/null 2>&1; then echo qemu:///system; else echo qemu:///session; fi; }
field() { .venv/bin/python -c "import json, sys; it = json.load(sys.stdin); print($1)"; }
prefect_pages() { # the configured server's, else those of the one that planvirt keeps
    local api=${PREFECT_API_URL-}
    [ -n "$api" ] || api=$(field 'it["url"]' <"$PREFECT_HOME/server.json")
    echo "${api%/api}"
}
refuse_anothers_demo() { # the machines' names are the same in every checkout
    local runs others
    runs=$(planvirt runs --limit 1000 --output json | field '" ".join(run["id"] for run in it["runs"])')
    others=$(planvirt instances --output json | field \
        '" ".join(i["name"] for i in it["instances"] if (i["plan"] or "").startswith("demo") and i["name"].startswith("demo-") and i["run"] not in "'"$runs"'".split())')
    [ -z "$others" ] || die "machines of a demo from another place are there: $others" "run 'make demo-clean' in that checkout first"
}
latest_run() { planvirt runs --output json | field 'it["runs"][0]["id"]'; }

write_config() {
    mkdir -p "$demo"
    cat >"$PLANVIRT_CONFIG" <<TOML
# Written by scripts/demo.sh.
[plans]
allow_paths = ["$demo/guest"]

[hosts.local]
driver = "libvirt"
uri = "$(libvirt_uri)"
pool = "$pool"

[stores.local]
driver = "directory"
path = "$demo/images"
TOML
}

forget_earlier() { # quietly: there may be nothing
    local plan
    for plan in "${plans[@]}"; do planvirt destroy "$plan" --yes >/dev/null 2>"$demo/destroy.log" || return; done
    rm -rf "$demo/images"
}

run_demo() {
    [ -x .venv/bin/planvirt ] || die "cannot find .venv/bin/planvirt" "run 'make setup' first"
    heading "A guest to play with"
    scripts/build-guest.sh "$demo/guest"
    write_config
    refuse_anothers_demo
    forget_earlier || die "cannot remove what an earlier demo left" "$(tail -n 5 "$demo/destroy.log")"

    heading "A plan that succeeds: two machines, an image of one, a third born from it"
    planvirt run plans/demo.yaml --yes
    local run
    run=$(latest_run)
    heading "What the run did"
    planvirt show "$run"
    heading "What there is now"
    planvirt instances --plan demo
    planvirt image list

    heading "A plan that fails: its last step waits for something that never happens"
    local code=0
    planvirt run plans/demo-rollback.yaml --yes || code=$?
    [ "$code" -eq 1 ] || die "the failing plan should have been rolled back (exit code 1), but ended with $code" "see: planvirt runs"
    heading "What is left of it: nothing"
    planvirt instances --plan demo-rollback
    planvirt image list
    local left
    left=$(planvirt instances --output json | field '[i["name"] for i in it["instances"] if i["plan"] == "demo-rollback"]')
    [ "$left" = "[]" ] || die "the rollback left instances: $left"
    left=$(planvirt image list --output json | field '[i["name"] for i in it["images"] if i["name"].startswith("doomed")]')
    [ "$left" = "[]" ] || die "the rollback left images: $left"

    heading "Done"
    echo "the runs in Prefect: $(prefect_pages)"
    echo "the machines keep running; look around with:"
    echo "  export PLANVIRT_HOME=$PLANVIRT_HOME PLANVIRT_CONFIG=$PLANVIRT_CONFIG"
    echo "  .venv/bin/planvirt runs"
    echo "remove all of it with: make demo-clean"
}

remove_pool() {
    local uri volume
    uri=$(libvirt_uri)
    virsh -q -c "$uri" pool-info "$pool" >/dev/null 2>&1 || return 0
    virsh -q -c "$uri" pool-start "$pool" >/dev/null 2>&1 || true
    while read -r volume; do
        [ -z "$volume" ] || virsh -q -c "$uri" vol-delete --pool "$pool" "$volume" >/dev/null 2>&1
    done < <(virsh -q -c "$uri" vol-list "$pool" | sed 's/^ *//; s/   *.*//')
    virsh -q -c "$uri" pool-destroy "$pool" >/dev/null
    virsh -q -c "$uri" pool-delete "$pool" >/dev/null 2>&1 || true
    virsh -q -c "$uri" pool-undefine "$pool" >/dev/null 2>&1 || true
    ! virsh -q -c "$uri" pool-info "$pool" >/dev/null 2>&1 || die "cannot remove the storage pool $pool" "see: virsh -c $uri pool-info $pool"
    echo "the storage pool $pool is gone"
}

stop_what_setup_started() { # never while somebody's machine runs
    local name pid sudo=()
    [ -d "$demo/started" ] || return 0
    if [ -n "$(virsh -q -c qemu:///system list --name 2>/dev/null | tr -d '[:space:]')" ]; then
        echo "other machines are running: libvirt stays up"
        return
    fi
    [ "$(id -u)" -eq 0 ] || sudo=(sudo --)
    if [ -e "$demo/started/network" ] && virsh -q -c qemu:///system net-destroy default >/dev/null 2>&1; then
        echo "network 'default' is stopped"
    fi
    for name in libvirtd virtlogd; do
        pid=$(cat "$demo/started/$name.pid" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] || continue
        "${sudo[@]}" kill "$pid" && echo "$name is stopped"
    done
}

clean_demo() {
    heading "Removing the demo"
    if [ -x .venv/bin/planvirt ] && [ -e "$PLANVIRT_CONFIG" ]; then
        local plan
        refuse_anothers_demo
        for plan in "${plans[@]}"; do planvirt destroy "$plan" --yes || die "cannot remove what $plan made; nothing else is touched"; done
        planvirt down
    fi
    remove_pool
    stop_what_setup_started
    rm -rf "$demo"
    echo "$demo is gone"
}

case ${1-run} in
    run) run_demo ;;
    clean) clean_demo ;;
    *) die "cannot do '$1'" "usage: scripts/demo.sh [run | clean]" ;;
esac
