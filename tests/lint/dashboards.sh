#!/usr/bin/env bash
# The dashboards of the chart are those that charts/dashboards/make.py writes.
set -euo pipefail
exec "$(dirname "$0")/../../charts/dashboards/make.py" --check
