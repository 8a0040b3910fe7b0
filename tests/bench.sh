#!/usr/bin/env bash
# bench.sh         lists the benchmarks
# bench.sh NAME    runs one; it must end with the line `ratio NAME <value>`, higher is better
set -euo pipefail
cd "$(dirname "$0")/.."

# name | what it measures, against which peer or bar | command
table=tests/benches.txt

if (($# == 0)); then
    echo "make bench NAME=…"
    awk -F ' *[|] *' '!/^#/ && NF == 3 { printf "  %-18s %s\n", $1, $2 }' "$table"
    exit
fi

name=$1
command=$(awk -F ' *[|] *' -v name="$name" '!/^#/ && $1 == name { print $3 }' "$table")
if [[ -z $command ]]; then
    echo "error: no benchmark '$name'; there are: $(awk -F ' *[|] *' '!/^#/ && NF == 3 { printf "%s ", $1 }' "$table")" >&2
    exit 64
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
bash -euo pipefail -c "$command" | tee "$log"
if ! tail -n1 "$log" | grep -qE "^ratio $name -?[0-9]+(\.[0-9]+)?$"; then
    echo "error: the last line is not 'ratio $name <value>'" >&2
    exit 70
fi
