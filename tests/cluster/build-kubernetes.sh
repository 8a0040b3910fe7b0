#!/usr/bin/env bash
# build-kubernetes.sh FOLDER SERVER…   builds Kubernetes 1.20.2 servers from Debian bookworm's own source with
# bookworm's Go, in FOLDER/bin. About 400 CPU-seconds. Changes nothing outside FOLDER.
set -euo pipefail
mkdir -p "$1"
work=$(readlink -f "$1")
shift
say() { echo "build-kubernetes: $(date +%T) $*" >&2; }

mkdir -p "$work"/{apt/lists/partial,apt/etc,apt/cache/archives/partial,debs,go,bin,gopath/src/k8s.io}
# Sources of the suites that this machine uses already, in a private copy: the system's lists stay as they are.
list=$(grep -lE '^Suites:.*bookworm' /etc/apt/sources.list.d/*.sources 2>/dev/null | sed 1q || true)
if [[ $list ]]; then
    sed 's/^Types: deb$/Types: deb deb-src/' "$list" >"$work/apt/etc/sources.sources"
else
    sed -n '/bookworm/{/^deb /{p;s/^deb /deb-src /p}}' /etc/apt/sources.list >"$work/apt/etc/sources.list"
fi
[[ -s $work/apt/etc/sources.sources || -s $work/apt/etc/sources.list ]] || {
    echo "error: no Debian 12 (bookworm) package source on this machine; set KUBEBUILDER_ASSETS to built servers" >&2
    exit 69
}
cat >"$work/apt/apt.conf" <<CONF
Dir::Etc::SourceList "/dev/null"; Dir::Etc::SourceParts "$work/apt/etc"; Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt/cache"; Acquire::Languages "none"; APT::Sandbox::User "root";
CONF
export APT_CONFIG=$work/apt/apt.conf

say "Go and the source"
apt-get -qq update
(cd "$work/debs" && apt-get -qq download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev)
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/go"; done
(cd "$work" && apt-get -qq source --only-source kubernetes=1.20.5+really1.20.2-1.1+deb12u1 >/dev/null)
source=$work/gopath/src/k8s.io/kubernetes
rm -rf "$source"
mv "$work/kubernetes-1.20.5+really1.20.2" "$source"
cd "$source"
# reflect2 1.0.1 breaks under Go 1.18 and newer; Debian has 1.0.2
reflect=vendor/github.com/modern-go/reflect2
rm -f $reflect/*.go $reflect/*.s
cp "$work"/go/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} $reflect/

export GOROOT=$work/go/usr/lib/go-1.19 GOPATH=$work/gopath GO111MODULE=off CGO_ENABLED=0 GOCACHE=$work/gocache GOFLAGS=
export PATH=$GOROOT/bin:$PATH
say "generated OpenAPI, the one file that the tarball lacks"
go build -o "$work/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(grep -rlE --include='*.go' '^// *\+k8s:openapi-gen=' pkg staging/src \
    | grep -vE '_test.go|zz_generated|staging/src/k8s.io/(code-generator|sample-apiserver)/' \
    | xargs -n1 dirname | sort -u | sed 's#^staging/src/#vendor/#; s#^#k8s.io/kubernetes/#' | paste -sd,)
"$work/openapi-gen" --logtostderr -h hack/boilerplate/boilerplate.generatego.txt -O zz_generated.openapi \
    -p k8s.io/kubernetes/pkg/generated/openapi -i "$packages" -r /dev/null -o "$GOPATH/src" >"$work/openapi.log" 2>&1 \
    || [[ -s pkg/generated/openapi/zz_generated.openapi.go ]] || {
    tail -n 5 "$work/openapi.log" >&2
    exit 1
}

version=k8s.io/kubernetes/vendor/k8s.io/component-base/version
client=k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version
flags="-s -w -X $version.gitTreeState=archive"
for package in "$version" "$client"; do
    flags+=" -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20"
done
for server; do
    say "$server"
    go build -tags providerless,dockerless -trimpath -ldflags "$flags" -o "$work/bin/$server" "./cmd/$server"
done
