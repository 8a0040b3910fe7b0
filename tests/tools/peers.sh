#!/usr/bin/env bash
# peers.sh NAME…   installs peers of benchmarks, pinned, each apart, into the cache folder; prints NAME=PATH lines.
# A peer that cannot be had is told on standard error and has no line.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/s3-operator/bench
mkdir -p "$cache"

declare -A pins=(
    [vllm-router]='vllm-router==0.1.17'
    [sglang-router]='sglang-router==0.3.2'
    [litellm]='litellm[proxy]==1.106.2'
)

python_peer() {
    local name=$1 folder=$cache/venv-$1
    if [[ ! -f $folder/installed ]]; then
        echo "installing ${pins[$name]} into $folder" >&2
        { python3 -m venv "$folder" && "$folder/bin/pip" install -q --disable-pip-version-check "${pins[$name]}"; } >&2 ||
            { echo "cannot install ${pins[$name]}: see above" >&2; return; }
        touch "$folder/installed"
    fi
    echo "$name=$folder/bin/python"
}

nginx_peer() {
    local folder=$cache/nginx
    if command -v nginx >/dev/null; then
        echo "nginx=$(command -v nginx)"
        return
    fi
    if [[ ! -x $folder/usr/sbin/nginx ]]; then
        echo "unpacking Debian's nginx into $folder" >&2
        mkdir -p "$folder"
        { (cd "$folder" && apt-get download nginx) && dpkg-deb -x "$folder"/nginx_*.deb "$folder"; } >&2 ||
            { echo "cannot unpack Debian's nginx: see above" >&2; return; }
    fi
    if ! "$folder/usr/sbin/nginx" -v >/dev/null 2>&1; then
        echo "nginx does not start here: $("$folder/usr/sbin/nginx" -v 2>&1 | head -n1)" >&2
        return
    fi
    echo "nginx=$folder/usr/sbin/nginx"
}

for name in "$@"; do
    case $name in
        nginx) nginx_peer ;;
        *) [[ -n ${pins[$name]:-} ]] || { echo "unknown peer $name" >&2; exit 64; }; python_peer "$name" ;;
    esac
done
