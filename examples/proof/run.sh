#!/usr/bin/env bash
# The proof with real models, for one NVIDIA GPU: builds, fetches, trains three seeds side by side, evaluates, prints the tables.
# Interrupted, it goes on where it was.
#   examples/proof/run.sh smollm2|qwen|hops
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${S3_DATA:-$PWD/.s3/data} state=.s3/proof-${1:-}
case ${1:-} in
smollm2) fetch=() evaluations=(smollm2) ;;
qwen) fetch=(qwen) evaluations=(qwen) ;;
hops) fetch=(qwen) evaluations=(hops singles) ;;
*)
    echo "usage: examples/proof/run.sh smollm2|qwen|hops" >&2
    exit 64
    ;;
esac
if [[ -z ${S3_BIN_DIR:-} ]]; then
    make build PROFILE=gpu
    S3_BIN_DIR=target/release
fi
export S3_BIN_DIR
python3 examples/quickstart/data/fetch.py quickstart "${fetch[@]}"
volumes=(--volume data="$data" --volume assets=examples/quickstart --state "$state")
if [[ $1 == hops ]]; then
    python3 examples/quickstart/data/multihop.py "$data"
    "$S3_BIN_DIR/s3" run examples/proof/{retrieverindex,hops-generator}.yaml "${volumes[@]}"
    volumes+=(--volume generator="$state/work")
fi
"$S3_BIN_DIR/s3" run examples/proof/retrieverindex.yaml "examples/proof/$1.yaml" "${volumes[@]}" --jobs 3
results=()
for evaluation in "${evaluations[@]}"; do
    results+=("$state/work/$evaluation-eval/results/results.jsonl")
done
python3 examples/proof/table.py "${results[@]}" --training "$state/work/$1"-[123]-train/state/training
