#!/usr/bin/env bash
# phase.sh NAME COMMAND…   runs the command and notes name, seconds and exit code in .s3/phases
# phase.sh --summary       prints the notes as a table
set -euo pipefail
cd "$(dirname "$0")/../.."
notes=.s3/phases

if [[ $1 == --summary ]]; then
    awk -F '\t' '{ printf "  %-14s %6d s  %s\n", $1, $2, $3 == 0 ? "ok" : "failed with " $3; all += $2 }
        END { printf "  %-14s %6d s\n", "together", all }' "$notes"
    exit
fi

name=$1
shift
mkdir -p .s3
echo "== $name" >&2
# Ctrl-C goes to the command, which checkpoints; this script only waits for it.
trap : INT
start=$SECONDS
status=0
"$@" || status=$?
printf '%s\t%d\t%d\n' "$name" $((SECONDS - start)) "$status" >>"$notes"
echo "== $name: $((SECONDS - start)) s" >&2
exit "$status"
