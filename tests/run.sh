#!/usr/bin/env bash
# Everything that checks the project: format, lint, types, import contracts, tests. Further words go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/install.sh
source launch/install.sh
install_optbench deepspeed,third-party,dev
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check .
ruff check .
mypy
lint-imports
# Twice: what minds nothing else on the machine by twos, then what times, counts or looks at everything by itself.
none=5 # what pytest ends with where nothing was chosen
first=0 second=0
pytest --alone=not -n 2 --dist loadfile --no-loadscope-reorder "$@" || first=$?
pytest --alone=only "$@" || second=$?
for code in "$first" "$second"; do
    if [ "$code" != 0 ] && [ "$code" != "$none" ]; then exit "$code"; fi
done
if [ "$first" = "$none" ] && [ "$second" = "$none" ]; then exit "$none"; fi
