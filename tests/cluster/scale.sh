#!/usr/bin/env bash
# scale.sh   the operator before 10,000 jobs, and before 500 with a pod each; ends with the line of `make bench`
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
cd "$repository"
cargo build --release --locked --workspace --bin s3-operator
target=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
export S3_OPERATOR=$target/release/s3-operator
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$here/control-plane.sh" with cargo test --locked --workspace --features s3-tests/cluster --test operator scale -- \
    --ignored --nocapture --test-threads 1 | tee "$log"
grep '^ratio operator-scale' "$log" | tail -n 1
