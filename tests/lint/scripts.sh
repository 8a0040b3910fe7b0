#!/usr/bin/env bash
# Shell scripts parse, are executable and stop at the first error; Python files compile.
set -euo pipefail
cd "$(dirname "$0")/../.."
failed=0
for script in .ci/run $(git ls-files -co --exclude-standard '*.sh'); do
    bash -n "$script" || failed=1
    [[ -x $script ]] || { echo "$script is not executable" >&2; failed=1; }
    grep -q '^set -euo pipefail$' "$script" || { echo "$script lacks 'set -euo pipefail'" >&2; failed=1; }
done
for file in $(git ls-files -co --exclude-standard '*.py'); do
    python3 -c 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")' "$file" || failed=1
done
exit "$failed"
