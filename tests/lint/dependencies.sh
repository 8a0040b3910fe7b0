#!/usr/bin/env bash
# Every external [workspace.dependencies] entry has its line in docs/dependencies.md and the reverse.
set -euo pipefail
cd "$(dirname "$0")/../.."

used=$(sed -n '/^\[workspace.dependencies\]/,/^\[/p' Cargo.toml | sed -n 's/^\([a-zA-Z0-9_-]*\) = .*/\1/p' | grep -v '^s3-' | sort)
told=$(sed -n 's/^| `\([a-zA-Z0-9_-]*\)` | .\+ |$/\1/p' docs/dependencies.md | sort)
untold=$(comm -23 <(echo "$used") <(echo "$told"))
unused=$(comm -13 <(echo "$used") <(echo "$told"))
[[ -z $untold ]] || echo "docs/dependencies.md has no line for:" $untold >&2
[[ -z $unused ]] || echo "docs/dependencies.md tells of what Cargo.toml has not:" $unused >&2
[[ -z $untold && -z $unused ]]

# An entry that no member uses is dead.
members=$(git ls-files -co --exclude-standard '*/Cargo.toml')
for name in $used; do
    if ! grep -qE "^$name(\.workspace = true| = \{ workspace = true)" $members; then
        echo "no member uses $name: take it out of Cargo.toml and docs/dependencies.md" >&2
        exit 1
    fi
done

# One version per dependency: members take it from the workspace.
stray=$(grep -nE '^[a-zA-Z0-9_-]+ *= *("|\{.*version)' $members | grep -vE ':(name|version|edition|license|description|path|rust-version|repository|readme|harness|links|default-run) *=' | grep -vE '= *"[a-z_/]+\.rs"' || true)
if [[ -n $stray ]]; then
    echo "versions belong to the root Cargo.toml, members say .workspace = true:" >&2
    echo "$stray" >&2
    exit 1
fi
