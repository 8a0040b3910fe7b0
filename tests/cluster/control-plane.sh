#!/usr/bin/env bash
# A Kubernetes 1.20.2 control plane on the loopback with fake GPU nodes; tests play the kubelet.
#
#   control-plane.sh up [--cel]       starts it and prints `export KUBECONFIG=…`; --cel: CRDs with CEL, by the 1.36 CRD server
#   control-plane.sh exec COMMAND…    with KUBECONFIG, kubectl and helm
#   control-plane.sh with [--cel] COMMAND…    up, the command, down, whatever happens; the command's exit code
#   control-plane.sh restart-api      kills the API server without warning and starts it again; returns when it answers
#   control-plane.sh down
#
# S3_FAKE_NODES (2): nodes gpu-0…, each with 8 nvidia.com/gpu. S3_CLUSTER (control-plane): name of the instance; several
# run side by side. `up` and `down` clear away what a killed one left.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
source "$here/plane.sh"
instance=${S3_CLUSTER:-control-plane}
run=$state/$instance
log=$state/log/$instance
# how a test restarts the API server that it asks
export S3_CLUSTER=$instance S3_TEST_PLANE=$here/control-plane.sh
enter=()
address=127.0.0.1
# Nobody reports the health of fake nodes: they must be neither tainted nor declared lost.
api_flags=(--advertise-address=127.0.0.1 --endpoint-reconciler-type=none --disable-admission-plugins=TaintNodesByCondition)
# By default the controllers ask the server for 20 things a second: 500 Jobs at once would wait for them, not for the operator.
controller_flags=('--controllers=*,-nodelifecycle' --kube-api-qps=1000 --kube-api-burst=2000)

down() {
    [[ -d $run ]] || return 0
    stop proxy crd-server kube-scheduler kube-controller-manager kube-apiserver etcd
    rm -rf "$run"
}

fake_nodes() {
    local number ready
    ready='{"type":"Ready","status":"True","reason":"Fake","message":"a test plays the kubelet","lastHeartbeatTime":null,"lastTransitionTime":null}'
    local room='{"cpu":"64","memory":"512Gi","pods":"500","ephemeral-storage":"1Ti","nvidia.com/gpu":"8"}'
    for ((number = 0; number < ${S3_FAKE_NODES:-2}; number++)); do
        k create -f - >/dev/null <<NODE
{"apiVersion":"v1","kind":"Node","metadata":{"name":"gpu-$number","labels":{"kubernetes.io/hostname":"gpu-$number","kubernetes.io/os":"linux"}}}
NODE
        k patch node "gpu-$number" --subresource=status --type=merge \
            -p "{\"status\":{\"capacity\":$room,\"allocatable\":$room,\"conditions\":[$ready]}}" >/dev/null
    done
}

up() {
    cel=''
    if [[ ${1-} == --cel ]]; then
        cel=yes
        "$here/prepare.sh" --crds
    else
        "$here/prepare.sh"
    fi
    down
    mkdir -p "$run" "$log"
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap down EXIT
    # Held together while they are chosen, so that they differ; below the range that outgoing connections take, so that a
    # server that is started again finds its port free.
    read -r port_api port_etcd port_peer port_crds port_proxy < <(python3 -c '
import random, socket
sockets = []
while len(sockets) < 5:
    s = socket.socket()
    try:
        s.bind(("127.0.0.1", random.randrange(10000, 20000)))
        sockets.append(s)
    except OSError:
        s.close()
print(*(s.getsockname()[1] for s in sockets))')
    echo "$port_api $port_etcd $port_peer $port_crds $port_proxy" >"$run/ports"
    certificates
    control_plane
    fake_nodes
    # plain HTTP for tests; here, because what a killed test leaves behind nobody would stop
    start proxy "$bin/kubectl" --kubeconfig "$run/admin.kubeconfig" proxy --port="$port_proxy"
    echo "http://127.0.0.1:$port_proxy" >"$run/url"
    trap - EXIT
    say "up; stop it with ${0##*/} down"
}

usage() { die "usage: control-plane.sh up [--cel] | restart-api | down | exec COMMAND… | with [--cel] COMMAND…"; }

case ${1-} in
up)
    up "${2-}"
    echo "export KUBECONFIG=$run/admin.kubeconfig PATH=$bin:\$PATH"
    ;;
down) down ;;
restart-api)
    read -r port_api port_etcd port_peer port_crds port_proxy <"$run/ports" || die "not up; run ${0##*/} up"
    restart_api_server
    ;;
exec)
    shift
    (($#)) || usage
    environment
    exec "$@"
    ;;
with)
    shift
    with_cluster "$@"
    ;;
*) usage ;;
esac
