#!/usr/bin/env bash
# A Kubernetes 1.20.2 control plane on the loopback with fake GPU nodes; tests play the kubelet.
#
#   control-plane.sh up [--cel]       starts it and prints `export KUBECONFIG=…`; --cel: CRDs with CEL, by the 1.36 CRD server
#   control-plane.sh exec COMMAND…    with KUBECONFIG, kubectl and helm
#   control-plane.sh with [--cel] COMMAND…    up, the command, down, whatever happens; the command's exit code
#   control-plane.sh down
#
# S3_FAKE_NODES (2): nodes gpu-0…, each with 8 nvidia.com/gpu. S3_CLUSTER (control-plane): name of the instance; several
# run side by side. `up` and `down` clear away what a killed one left.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
instance=${S3_CLUSTER:-control-plane}
run=$state/$instance
log=$state/log/$instance
enter=()

down() {
    [[ -d $run ]] || return 0
    stop proxy crd-server kube-scheduler kube-controller-manager kube-apiserver etcd
    rm -rf "$run"
}

certificates() {
    local pki=$run/pki
    mkdir -p "$pki"
    chmod 700 "$pki"
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=s3-test-ca -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    certificate apiserver /CN=kube-apiserver server \
        IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc
    certificate crd-server /CN=crd-server server IP:127.0.0.1,DNS:localhost,DNS:crd-server.kube-system.svc
    certificate admin /O=system:masters/CN=admin client
    certificate controllers /CN=system:kube-controller-manager client
    certificate scheduler /CN=system:kube-scheduler client
    certificate front-proxy /CN=front-proxy-client client
    openssl genrsa -out "$pki/accounts.key" 2048 2>/dev/null
    openssl rsa -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>/dev/null
    local user
    for user in admin controllers scheduler; do
        cat >"$run/$user.kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$port_api", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: $user, user: {client-certificate-data: $(base64 -w0 "$pki/$user.crt"), client-key-data: $(base64 -w0 "$pki/$user.key")}}]
contexts: [{name: test, context: {cluster: test, user: $user}}]
current-context: test
CONFIG
    done
}

# certificate NAME SUBJECT client | NAME SUBJECT server ALTERNATIVE-NAMES
certificate() {
    local file=$run/pki/$1 extensions="extendedKeyUsage=${3}Auth"
    [[ $3 == client ]] || extensions+=$'\n'"subjectAltName=$4"
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$file.key" -out "$file.csr" 2>/dev/null
    openssl x509 -req -in "$file.csr" -CA "$run/pki/ca.crt" -CAkey "$run/pki/ca.key" -CAcreateserial -days 30 \
        -extfile <(echo "$extensions") -out "$file.crt" 2>/dev/null
}

control_plane() {
    local pki=$run/pki etcd=http://127.0.0.1:$port_etcd peer=http://127.0.0.1:$port_peer user
    start etcd "$root/usr/bin/etcd" --data-dir "$run/etcd" --unsafe-no-fsync --listen-client-urls "$etcd" \
        --advertise-client-urls "$etcd" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
        --initial-cluster "default=$peer"
    # Nobody reports the health of fake nodes: they must not be tainted here nor declared lost below.
    start kube-apiserver "$bin/kube-apiserver" --etcd-servers="$etcd" --secure-port="$port_api" --bind-address=127.0.0.1 \
        --advertise-address=127.0.0.1 --endpoint-reconciler-type=none --disable-admission-plugins=TaintNodesByCondition \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --service-cluster-ip-range=10.96.0.0/20 --service-account-key-file="$pki/accounts.pub" \
        --service-account-signing-key-file="$pki/accounts.key" --service-account-issuer=https://kubernetes.default.svc \
        --authorization-mode=Node,RBAC --allow-privileged=true --feature-gates=TTLAfterFinished=true \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key"
    wait_for 120 "the API server" k get --raw /readyz
    if [[ $cel ]]; then
        crd_server
        touch "$run/cel"
    fi
    user=$run/controllers.kubeconfig
    start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$user" --authentication-kubeconfig="$user" \
        --authorization-kubeconfig="$user" --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/accounts.key" \
        --use-service-account-credentials=true --leader-elect=false --cluster-signing-cert-file="$pki/ca.crt" \
        --cluster-signing-key-file="$pki/ca.key" --bind-address=127.0.0.1 --secure-port=0 --port=0 \
        '--controllers=*,-nodelifecycle' --feature-gates=TTLAfterFinished=true
    user=$run/scheduler.kubeconfig
    start kube-scheduler "$bin/kube-scheduler" --kubeconfig="$user" --authentication-kubeconfig="$user" \
        --authorization-kubeconfig="$user" --leader-elect=false --bind-address=127.0.0.1 --secure-port=0 --port=0
    wait_for 120 "the default service account" k get serviceaccount default
}

# CRDs and their objects, served by the 1.36 CRD server behind the 1.20 aggregator. An ExternalName Service reaches it on
# the loopback, which Endpoints may not name. Kubernetes is told per group, and again for the CRDs themselves.
crd_server() {
    local admin=$run/admin.kubeconfig pki=$run/pki ca reach
    start crd-server "$crd_server" --etcd-servers="http://127.0.0.1:$port_etcd" --etcd-prefix=/registry136 \
        --bind-address=127.0.0.1 --secure-port="$port_crds" --tls-cert-file="$pki/crd-server.crt" \
        --tls-private-key-file="$pki/crd-server.key" --client-ca-file="$pki/ca.crt" --kubeconfig="$admin" \
        --authentication-kubeconfig="$admin" --authorization-kubeconfig="$admin" --enable-priority-and-fairness=false \
        --disable-admission-plugins=ValidatingAdmissionPolicy,MutatingAdmissionPolicy
    ca=$(base64 -w0 "$pki/ca.crt")
    reach="caBundle: $ca, service: {name: crd-server, namespace: kube-system, port: $port_crds}"
    wait_for 60 "namespace kube-system" k get namespace kube-system
    k apply -f - >/dev/null <<OBJECTS
apiVersion: v1
kind: Service
metadata: {name: crd-server, namespace: kube-system}
spec: {type: ExternalName, externalName: localhost, ports: [{port: $port_crds}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1alpha1.searchagent.dev}
spec: {group: searchagent.dev, version: v1alpha1, groupPriorityMinimum: 1000, versionPriority: 100, $reach}
OBJECTS
    # replaces the server's own entry; with that one's label kube-apiserver would take it back
    k replace -f - >/dev/null <<OBJECT
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.apiextensions.k8s.io}
spec: {group: apiextensions.k8s.io, version: v1, groupPriorityMinimum: 16700, versionPriority: 15, $reach}
OBJECT
    wait_for 60 "the CRD server" k wait --for=condition=Available --timeout=1s apiservice/v1.apiextensions.k8s.io
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
    # held together while they are chosen, so that they differ
    read -r port_api port_etcd port_peer port_crds port_proxy < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(5)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')
    certificates
    control_plane
    fake_nodes
    # plain HTTP for tests; here, because what a killed test leaves behind nobody would stop
    start proxy "$bin/kubectl" --kubeconfig "$run/admin.kubeconfig" proxy --port="$port_proxy"
    echo "http://127.0.0.1:$port_proxy" >"$run/url"
    trap - EXIT
    say "up; stop it with ${0##*/} down"
}

usage() { die "usage: control-plane.sh up [--cel] | down | exec COMMAND… | with [--cel] COMMAND…"; }

environment() {
    [[ -e $run/admin.kubeconfig ]] || die "not up; run control-plane.sh up"
    S3_TEST_API=$(<"$run/url")
    export S3_TEST_API KUBECONFIG=$run/admin.kubeconfig KUBECACHEDIR=$run/kubectl PATH=$bin:$PATH
    # tests ask what the server can do
    [[ ! -e $run/cel ]] || export S3_TEST_CEL=1
}

case ${1-} in
up)
    up "${2-}"
    echo "export KUBECONFIG=$run/admin.kubeconfig PATH=$bin:\$PATH"
    ;;
down) down ;;
exec)
    shift
    (($#)) || usage
    environment
    exec "$@"
    ;;
with)
    shift
    option=''
    if [[ ${1-} == --cel ]]; then
        option=--cel
        shift
    fi
    (($#)) || usage
    up $option
    trap down EXIT
    environment
    status=0
    "$@" || status=$?
    exit $status
    ;;
*) usage ;;
esac
