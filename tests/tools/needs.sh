#!/usr/bin/env bash
# needs.sh            checks what building and running need beside the sources
# needs.sh --tests    and what only the tests need: a browser
#
# As root on Debian or Ubuntu it installs
# what is missing; else it says what to install and ends with 69.
set -euo pipefail

# the oldest compiler the workspace promises to build with
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml")

missing=()
command -v cc >/dev/null && command -v c++ >/dev/null || missing+=(build-essential) # ring, onig
command -v python3 >/dev/null || missing+=(python3)                                  # data
command -v cmake >/dev/null || missing+=(cmake)                                      # faiss
[[ -n $(find -L /usr/lib /usr/local/lib -name libopenblas.so -print -quit 2>/dev/null) ]] || missing+=(libopenblas-dev) # faiss
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)                   # data
if [[ ${1-} == --tests ]]; then
    command -v chromium >/dev/null || missing+=(chromium)               # the report page, opened
    command -v chromedriver >/dev/null || missing+=(chromium-driver)    # and driven
fi

if ((${#missing[@]})); then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "error: missing on this machine; as root: apt-get install ${missing[*]}" >&2
        exit 69
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "error: no cargo; install Rust $rust or newer with rustup (https://rustup.rs)" >&2
    exit 69
fi
have=$(rustc --version | cut -d' ' -f2)
if [[ $(printf '%s\n' "$rust" "$have" | sort -V | head -n1) != "$rust" ]]; then
    echo "error: rustc is $have, the workspace needs $rust or newer; run: rustup update stable" >&2
    exit 69
fi
