#!/usr/bin/env bash
# The proof with real models, for one NVIDIA GPU: builds, fetches, trains three seeds, evaluates, prints the table.
# Interrupted, it goes on where it was.
#   examples/proof/run.sh smollm2|qwen
set -euo pipefail
cd "$(dirname "$0")/../.."
case ${1:-} in
smollm2) extra=() ;;
qwen) extra=(qwen) ;;
*)
    echo "usage: examples/proof/run.sh smollm2|qwen" >&2
    exit 64
    ;;
esac
data=${S3_DATA:-$PWD/.s3/data} state=.s3/proof-$1
if [[ -z ${S3_BIN_DIR:-} ]]; then
    make build PROFILE=gpu
    S3_BIN_DIR=target/release
fi
export S3_BIN_DIR
python3 examples/quickstart/data/fetch.py quickstart "${extra[@]}"
"$S3_BIN_DIR/s3" run examples/proof/retrieverindex.yaml "examples/proof/$1.yaml" \
    --volume data="$data" --volume assets=examples/quickstart --state "$state"
python3 examples/proof/table.py "$state/work/$1-eval/results/results.jsonl" "$state/work/$1"-[123]-train/state/training
