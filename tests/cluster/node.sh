#!/usr/bin/env bash
# A whole Kubernetes 1.20.2 cluster with one real node, node1: kubelet, containerd and runc, CNI, kube-proxy, DNS. It lives
# in a network namespace of its own, from which nothing outside is reached. Needs root and cgroup v1 (or hybrid).
#
#   node.sh up [--cel]        --cel: CRDs with CEL, by the 1.36 CRD server
#   node.sh exec COMMAND…     in that network, with KUBECONFIG, kubectl, helm, prometheus, promtool
#   node.sh with [--cel] COMMAND…   up, the command, down, whatever happens, `kill -9` included; the command's exit code
#   node.sh load ARCHIVE…     images (images.sh makes them); pods need imagePullPolicy Never or IfNotPresent
#   node.sh down
#
# S3_FAKE_GPUS (2): nvidia.com/gpu that the node claims. Claims of the storage class `disk`, the default, become folders
# of the node. One node a machine: kubelet and containerd use paths that nobody can choose.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
source "$here/plane.sh"
run=$state/node
log=$state/log/node
group=s3-node
place=/run/$group # sockets have short names
node_address=10.250.0.1
enter=(nsenter --net=/run/netns/$group) # not `ip netns exec`, which hides the cgroups
libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
address=0.0.0.0
api_flags=()
controller_flags=()
keeper='' # whether somebody waits for our end
port_api=6443 port_etcd=12379 port_peer=12380 port_crds=17443 # in our own network nobody else has them
# what the kubelet changes on the machine, and folders that it makes at fixed places
sysctls=(kernel/panic kernel/panic_on_oops vm/overcommit_memory)
folders=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/pods /var/log/containers /usr/libexec/kubernetes)

ctr() { "$root/usr/bin/ctr" -a "$place/containerd.sock" -n k8s.io "$@"; }
load() {
    local archive
    for archive; do ctr images import --snapshotter native "$archive" >/dev/null; done
}

save_machine() {
    local name
    for name in "${sysctls[@]}"; do echo "$name $(<"/proc/sys/$name")"; done >"$run/sysctls"
    for name in "${folders[@]}"; do [[ -e $name ]] || echo "$name"; done >"$run/new-folders"
    ls -1d /var/log/pods/* /var/log/containers/* >"$run/old-logs" 2>/dev/null || true
}

restore_sysctls() {
    local name value
    [[ -e $run/sysctls ]] || return 0
    while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$run/sysctls"
}

# kill_members containers|all   what is in our cgroup, and with `all` what is in our network (shims, what `exec` started)
kill_members() {
    local pids own=$BASHPID
    pids=$({
        find /sys/fs/cgroup/*/$group -name cgroup.procs -exec cat {} + 2>/dev/null
        [[ $1 != all ]] || ip netns pids $group 2>/dev/null
    } | sort -u | grep -vx "$own" || true)
    # shellcheck disable=SC2086
    [[ -z $pids ]] || kill -9 $pids 2>/dev/null || true
}

down() {
    [[ -d $run ]] || return 0
    local mount file folder try
    stop names volumes dnsmasq kube-proxy kubelet proxy
    kill_members containers
    sleep 0.5 # while containerd still runs, its shims see the end of their containers and go
    stop crd-server kube-scheduler kube-controller-manager kube-apiserver etcd containerd
    for try in 1 2 3; do
        kill_members all
        sleep 0.2
    done
    awk -v run="$run/" -v place="$place/" 'index($2, run) == 1 || index($2, place) == 1 {print $2}' /proc/self/mounts \
        | sort -r | while read -r mount; do
        umount "$(printf %b "$mount")" 2>/dev/null || umount -l "$(printf %b "$mount")" || true
    done
    ! ip netns list | grep -qw "^$group" || ip netns del $group
    for try in 1 2 3 4 5; do
        find /sys/fs/cgroup/*/$group -depth -type d -exec rmdir {} + 2>/dev/null || true
        ls -d /sys/fs/cgroup/*/$group >/dev/null 2>&1 || break
        sleep 0.5
    done
    restore_sysctls
    { grep -ls "$place/" /var/lib/cni/results/* 2>/dev/null || true; } | xargs -r rm -f
    if [[ -e $run/new-folders ]]; then
        for file in /var/log/pods/* /var/log/containers/*; do
            [[ ! -e $file && ! -L $file ]] || grep -qxF "$file" "$run/old-logs" || rm -rf "$file"
        done
        while read -r folder; do rm -rf --one-file-system "$folder"; done <"$run/new-folders"
    fi
    rm -rf --one-file-system "$place" "$run"
}

network() {
    ip netns add $group
    # shellcheck disable=SC2016
    "${enter[@]}" bash -euo pipefail -c '
        ip link set lo up
        ip link add node0 type bridge
        ip addr add "$1/24" dev node0
        ip link set node0 up
        ip route add default via 10.250.0.254 dev node0
        echo 1 >/proc/sys/net/ipv4/ip_forward' - $node_address
}

cgroups() {
    local controller file
    for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
        [[ ! -d /sys/fs/cgroup/$controller ]] || mkdir -p "/sys/fs/cgroup/$controller/$group"
    done
    for file in cpuset.cpus cpuset.mems; do
        cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$group/$file"
    done
}

configuration() {
    local file
    mkdir -p "$run/conf/cni" # alone there: any other file would be taken for a network
    for file in containerd.toml kubelet.yaml kube-proxy.yaml resolv.conf bridge.conflist; do
        sed "s#@RUN@#$run#g; s#@ROOT@#$root#g; s#@STATE@#$place#g; s#@GROUP@#$group#g; s#@ADDRESS@#$node_address#g" \
            "$here/node/$file" >"$run/conf/$file"
    done
    mv "$run/conf/bridge.conflist" "$run/conf/cni/"
}

pause_image() {
    mkdir -p "$run/pause"
    gcc -static -O2 -s -o "$run/pause/pause" "$here/node/pause.c"
    "$repository/images/archive.py" "$run/pause" s3/pause:1 /pause "$run/pause.tar"
    load "$run/pause.tar"
}

kubelet() {
    start kubelet env PATH="$root/usr/bin:$root/usr/sbin:$PATH" LD_LIBRARY_PATH="$libraries" "$bin/kubelet" \
        --config="$run/conf/kubelet.yaml" --kubeconfig="$run/kubelet.kubeconfig" --root-dir="$run/kubelet" \
        --cert-dir="$run/kubelet-certs" --hostname-override=node1 --node-ip=$node_address --network-plugin=cni \
        --runtime-cgroups=/$group --container-runtime=remote \
        --container-runtime-endpoint="unix://$place/containerd.sock" --pod-infra-container-image=s3/pause:1
    start kube-proxy env PATH="$root/alternatives:$root/usr/sbin:$PATH" LD_LIBRARY_PATH="$libraries" \
        XTABLES_LIBDIR="$root/usr/lib/x86_64-linux-gnu/xtables" "$bin/kube-proxy" --config="$run/conf/kube-proxy.yaml"
}

names_and_volumes() {
    local admin=$run/admin.kubeconfig
    : >"$run/hosts"
    mkdir -p "$run/volumes"
    start dnsmasq env LD_LIBRARY_PATH="$libraries" "$root/usr/sbin/dnsmasq" --keep-in-foreground --conf-file=/dev/null \
        --user=root --no-resolv --no-hosts --addn-hosts="$run/hosts" --local=/cluster.local/ \
        --listen-address=$node_address --bind-interfaces --cache-size=0 --pid-file=
    start names python3 -B "$here/node/names.py" "$bin/kubectl" "$admin" "$run/hosts" "$run/dnsmasq.pid"
    k create -f - >/dev/null <<'CLASS'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: disk, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
CLASS
    start volumes python3 -B "$here/node/volumes.py" "$bin/kubectl" "$admin" "$run/volumes"
}

has_gpus() { [[ $(k get node node1 -o 'jsonpath={.status.allocatable.nvidia\.com/gpu}') == "$1" ]]; }
fake_gpus() {
    local count=${S3_FAKE_GPUS:-2}
    ((count)) || return 0
    k patch node node1 --subresource=status --type=json \
        -p "[{\"op\":\"add\",\"path\":\"/status/capacity/nvidia.com~1gpu\",\"value\":\"$count\"}]" >/dev/null
    wait_for 60 "$count fake GPUs" has_gpus "$count"
}

up() {
    cel=''
    [[ $(id -u) == 0 ]] || die "needs root: it makes a network namespace, cgroups and mounts"
    [[ -d /sys/fs/cgroup/memory ]] || die "needs the controllers of cgroup v1 under /sys/fs/cgroup; Kubernetes 1.20 knows no other"
    if [[ ${1-} == --cel ]]; then
        cel=yes
        "$here/prepare.sh" --node --crds
    else
        "$here/prepare.sh" --node
    fi
    down
    [[ ! -e $place ]] || die "$place belongs to the node of another clone: run its tests/cluster/node.sh down"
    ! pgrep -x kubelet >/dev/null || die "another kubelet runs on this machine"
    mkdir -p "$run" "$log" "$place"
    # whoever holds this line owns the node; a keeper of an earlier one leaves it alone
    echo "$$ $RANDOM$RANDOM" >"$run/owner"
    [[ ! $keeper ]] || setsid "$here/node.sh" keep $$ >/dev/null 2>&1 </dev/null &
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap down EXIT
    save_machine
    say "network, containerd"
    network
    cgroups
    configuration
    start containerd env LD_LIBRARY_PATH="$libraries" PATH="$root/usr/bin:$root/usr/sbin:$PATH" \
        "$root/usr/bin/containerd" -c "$run/conf/containerd.toml"
    wait_for 60 containerd ctr version
    pause_image
    say "control plane"
    certificates $node_address
    certificate kubelet /O=system:nodes/CN=system:node:node1 client
    certificate kubelet-server /CN=node1 server DNS:node1,IP:$node_address
    certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver client
    kubeconfig kubelet
    api_flags=(--advertise-address=$node_address --kubelet-client-certificate="$run/pki/apiserver-kubelet.crt"
        --kubelet-client-key="$run/pki/apiserver-kubelet.key" --kubelet-preferred-address-types=InternalIP
        --audit-policy-file="$here/node/audit.yaml" --audit-log-path="$run/audit.log")
    # a node of two busy cores is slow, not lost
    controller_flags=(--node-monitor-grace-period=60s)
    control_plane
    say "node"
    kubelet
    names_and_volumes
    wait_for 120 node1 k wait --for=condition=Ready --timeout=1s node/node1
    restore_sysctls # back before tests run, not only after them
    fake_gpus
    trap - EXIT
    say "up; stop it with ${0##*/} down"
}

# keep PID   waits for that process to end, by kill -9 too, and takes down what it left
keep() {
    local owner
    owner=$(<"$run/owner")
    tail --pid="$1" -f /dev/null
    [[ $(cat "$run/owner" 2>/dev/null) != "$owner" ]] || down
}

usage() { die "usage: node.sh up [--cel] | down | exec COMMAND… | with [--cel] COMMAND… | load ARCHIVE…"; }

path_before=$PATH
node_environment() {
    environment
    export PATH=$bin:$root/usr/bin:$path_before S3_NODE=$run S3_NODE_SCRIPT=$here/node.sh
}

case ${1-} in
up)
    up "${2-}"
    ;;
down) down ;;
exec)
    shift
    (($#)) || usage
    node_environment
    exec "${enter[@]}" "$@"
    ;;
with)
    shift
    option=''
    if [[ ${1-} == --cel ]]; then
        option=--cel
        shift
    fi
    (($#)) || usage
    keeper=yes
    up $option
    trap down EXIT
    node_environment
    status=0
    "${enter[@]}" "$@" || status=$?
    exit $status
    ;;
keep) keep "${2:?}" ;;
load)
    shift
    load "$@"
    ;;
*) usage ;;
esac
