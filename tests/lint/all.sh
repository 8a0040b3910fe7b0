#!/usr/bin/env bash
# Runs every other script of this folder; each prints what is wrong and how to put it right.
set -euo pipefail
cd "$(dirname "$0")"
failed=0
for check in *.sh; do
    [[ $check == all.sh ]] && continue
    if ! "./$check"; then
        echo "error: tests/lint/$check failed" >&2
        failed=1
    fi
done
exit "$failed"
