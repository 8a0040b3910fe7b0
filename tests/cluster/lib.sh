#!/usr/bin/env bash
# Sourced by the scripts of this folder: where things lie, and processes that are started, watched and stopped.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
repository=$(readlink -f "$here/../..")
# What costs minutes to make is kept outside the clone; what runs now lies inside, so that two clones do not meet.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/s3-operator/kube
bin=$cache/bin root=$cache/root
state=$repository/.s3/cluster

servers_plane=(kube-apiserver kube-controller-manager kube-scheduler)
# what a node runs besides
servers_node=(kubelet kube-proxy)
kubernetes=v1.20.2
crd_server=${S3_CRD_SERVER:-$bin/apiextensions-apiserver-1.36}

say() { echo "cluster: $*" >&2; }
die() {
    echo "error: ${0##*/}: $*" >&2
    exit 69
}

# start NAME COMMAND…   in the background and a session of its own. The child writes "pid starttime" itself, before it
# becomes the command: there is no moment in which it runs unrecorded.
start() {
    local name=$1
    shift
    setsid bash -c 'read -ra stat </proc/$$/stat; echo "$$ ${stat[21]}" >"$1"; shift; exec "$@"' - \
        "$run/$name.pid" ${enter[@]+"${enter[@]}"} "$@" >"$log/$name.log" 2>&1 </dev/null &
    # the record exists before anybody asks whether the process is alive
    local waited
    for waited in $(seq 200); do
        [[ ! -s $run/$name.pid ]] || return 0
        sleep 0.05
    done
    die "$name did not start; see $log/$name.log"
}

# alive NAME   is the recorded process that very process (same start time) and no zombie?
alive() {
    local pid born stat
    read -r pid born 2>/dev/null <"$run/$1.pid" || return 1
    stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    [[ $1 != Z && ${20} == "$born" ]]
}

# stop NAME…   TERM to all, ten seconds, then KILL
stop() {
    local name pid waited
    for name; do
        if alive "$name"; then
            read -r pid _ <"$run/$name.pid"
            kill "$pid" 2>/dev/null || true # it may have ended in between
        fi
    done
    for name; do
        for waited in $(seq 100); do
            alive "$name" || break
            sleep 0.1
        done
        if alive "$name"; then
            read -r pid _ <"$run/$name.pid"
            kill -9 "$pid" 2>/dev/null || true
        fi
        rm -f "$run/$name.pid"
    done
}

# wait_for SECONDS WHAT COMMAND…   until the command succeeds; gives up at once when a process of ours has died
wait_for() {
    local end=$((SECONDS + $1)) what=$2 record name
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || die "timed out waiting for $what; logs are in $log"
        sleep 0.2
        for record in "$run"/*.pid; do
            name=$(basename "$record" .pid)
            if ! alive "$name"; then
                tail -n 5 "$log/$name.log" >&2
                die "$name ended while waiting for $what; see $log/$name.log"
            fi
        done
    done
}

k() { ${enter[@]+"${enter[@]}"} "$bin/kubectl" --kubeconfig "$run/admin.kubeconfig" --cache-dir "$run/kubectl" "$@"; }

# Do the servers lie in a folder, in the right version?
have_servers() {
    local folder=$1 server
    shift
    for server; do
        [[ -x $folder/$server && $("$folder/$server" --version 2>/dev/null) == "Kubernetes $kubernetes" ]] || return 1
    done
}
