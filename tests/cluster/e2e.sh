#!/usr/bin/env bash
# e2e.sh [--cel]   the end-to-end test: programs, images and a real node are made, used and taken down again
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
cd "$repository"
command -v curl >/dev/null || die "missing on this machine; as root: apt-get install curl"
# one compilation for programs and test, whose features would else differ
cargo build --locked --workspace --bins --features s3-tests/e2e
cargo test --locked --workspace --features s3-tests/e2e --test e2e --no-run
target=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
export S3_CLI=$target/debug/s3 S3_DATA=${S3_DATA:-$repository/.s3/data}
images=$repository/.s3/images
"$here/images.sh" "$images" "$target/debug"
"$here/node.sh" with "$@" bash -euo pipefail -c '
    "$S3_NODE_SCRIPT" load "$1"/*-test.tar
    exec cargo test --locked --offline --workspace --features s3-tests/e2e --test e2e -- --nocapture' - "$images"
