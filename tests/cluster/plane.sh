#!/usr/bin/env bash
# Sourced by control-plane.sh and node.sh after lib.sh: certificates and the servers of a control plane. The caller sets
# run, log, enter, cel, address (where the API server listens), the ports, and the arrays api_flags and controller_flags.
set -euo pipefail

# certificate NAME SUBJECT client | NAME SUBJECT server ALTERNATIVE-NAMES
certificate() {
    local file=$run/pki/$1 extensions="extendedKeyUsage=${3}Auth"
    [[ $3 == client ]] || extensions+=$'\n'"subjectAltName=$4"
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$file.key" -out "$file.csr" 2>>"$log/openssl.log"
    openssl x509 -req -in "$file.csr" -CA "$run/pki/ca.crt" -CAkey "$run/pki/ca.key" -CAcreateserial -days 30 \
        -extfile <(echo "$extensions") -out "$file.crt" 2>>"$log/openssl.log"
}

# kubeconfig USER…   one file for each user's certificate
kubeconfig() {
    local pki=$run/pki user
    for user; do
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

# certificates [ADDRESS…]   of the servers and their users; the API server is known under further addresses
certificates() {
    local pki=$run/pki names=IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc extra
    for extra; do names+=,IP:$extra; done
    mkdir -p "$pki"
    chmod 700 "$pki"
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=s3-test-ca -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>>"$log/openssl.log"
    certificate apiserver /CN=kube-apiserver server "$names"
    certificate crd-server /CN=crd-server server IP:127.0.0.1,DNS:localhost,DNS:crd-server.kube-system.svc
    certificate admin /O=system:masters/CN=admin client
    certificate controllers /CN=system:kube-controller-manager client
    certificate scheduler /CN=system:kube-scheduler client
    certificate front-proxy /CN=front-proxy-client client
    openssl genrsa -out "$pki/accounts.key" 2048 2>>"$log/openssl.log"
    openssl rsa -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>>"$log/openssl.log"
    kubeconfig admin controllers scheduler
}

api_server() {
    local pki=$run/pki
    start kube-apiserver "$bin/kube-apiserver" --etcd-servers="http://127.0.0.1:$port_etcd" --secure-port="$port_api" --bind-address="$address" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --service-cluster-ip-range=10.96.0.0/20 --service-account-key-file="$pki/accounts.pub" \
        --service-account-signing-key-file="$pki/accounts.key" --service-account-issuer=https://kubernetes.default.svc \
        --authorization-mode=Node,RBAC --allow-privileged=true --feature-gates=TTLAfterFinished=true \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" "${api_flags[@]}"
    wait_for 120 "the API server" k get --raw /readyz
}

# restart_api_server   killed without warning and started again, on the same etcd
restart_api_server() {
    local pid
    read -r pid _ <"$run/kube-apiserver.pid"
    kill -9 "$pid"
    # its threads may hold the port for a moment after its end
    while alive kube-apiserver || (exec 3<>"/dev/tcp/127.0.0.1/$port_api") 2>/dev/null; do sleep 0.05; done
    rm -f "$run/kube-apiserver.pid"
    api_server
}

control_plane() {
    local pki=$run/pki etcd=http://127.0.0.1:$port_etcd peer=http://127.0.0.1:$port_peer user
    start etcd "$root/usr/bin/etcd" --data-dir "$run/etcd" --unsafe-no-fsync --listen-client-urls "$etcd" \
        --advertise-client-urls "$etcd" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
        --initial-cluster "default=$peer"
    api_server
    if [[ $cel ]]; then
        crd_server
        touch "$run/cel"
    fi
    user=$run/controllers.kubeconfig
    start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$user" --authentication-kubeconfig="$user" \
        --authorization-kubeconfig="$user" --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/accounts.key" \
        --use-service-account-credentials=true --leader-elect=false --cluster-signing-cert-file="$pki/ca.crt" \
        --cluster-signing-key-file="$pki/ca.key" --bind-address=127.0.0.1 --secure-port=0 --port=0 \
        --feature-gates=TTLAfterFinished=true "${controller_flags[@]}"
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

# What commands find in their environment; a test asks `S3_TEST_CEL` what the server can do.
environment() {
    [[ -e $run/admin.kubeconfig ]] || die "not up; run ${0##*/} up"
    export KUBECONFIG=$run/admin.kubeconfig KUBECACHEDIR=$run/kubectl PATH=$bin:$PATH
    [[ ! -e $run/url ]] || S3_TEST_API=$(<"$run/url")
    [[ ! -e $run/url ]] || export S3_TEST_API
    [[ ! -e $run/cel ]] || export S3_TEST_CEL=1
}

# with_cluster [--cel] COMMAND…   up, the command, down, whatever happens; ends with the command's exit code
with_cluster() {
    local option='' status=0
    if [[ ${1-} == --cel ]]; then
        option=--cel
        shift
    fi
    (($#)) || usage
    up $option
    trap down EXIT
    environment
    ${enter[@]+"${enter[@]}"} "$@" || status=$?
    exit $status
}
