#!/usr/bin/env bash
# test.sh [FILTER…]   with words, only the tests with these in their names, on plain 1.20 (`restart:: -- --ignored` restarts
# the API server); without,
# it runs the cluster tests and the chart on plain Kubernetes 1.20 and, where a CRD server with CEL is at hand, on the hybrid
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
cargo build --locked --workspace --bin s3-operator
S3_OPERATOR=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/s3-operator
export S3_OPERATOR
tests=(cargo test --locked --workspace --features s3-tests/cluster --test cluster --test operator)
if (($#)); then
    exec "$here/control-plane.sh" with "${tests[@]}" "$@"
fi
# the restart of the API server comes last: it is everybody's
everything='"$@"; exec "$@" restart:: -- --ignored'
"$here/control-plane.sh" with bash -euo pipefail -c "$everything" - "${tests[@]}"
"$here/control-plane.sh" with "$here/chart.sh"
if [[ -x $crd_server ]]; then
    # faults do not depend on CEL: a few plans show that nothing else differs
    S3_FAULT_PLANS=${S3_FAULT_PLANS:-4} "$here/control-plane.sh" with --cel "${tests[@]}"
    "$here/control-plane.sh" with --cel "$here/chart.sh"
else
    say "NOT RUN: the tests with CEL; set S3_CRD_SERVER to an apiextensions-apiserver 1.36"
fi
