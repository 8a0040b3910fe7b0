#!/usr/bin/env bash
# venv.sh NAME PACKAGE…  makes (once) a Python environment with exactly these packages in the cache folder
# and prints its interpreter
set -euo pipefail
name=$1
shift
folder=${XDG_CACHE_HOME:-$HOME/.cache}/s3-operator/bench/venv-$name
stamp=$folder/packages
if [[ ! -f $stamp || $(cat "$stamp") != "$*" ]]; then
    echo "installing $* into $folder (once; PyTorch is about 3 GB)" >&2
    rm -f "$stamp"
    [[ -x $folder/bin/python ]] || python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
    echo "$*" >"$stamp"
fi
echo "$folder/bin/python"
