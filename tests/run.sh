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
# Twice: what minds nothing else on the machine by twos, then what times or looks at everything by itself.
failed=1 none=5 # pytest's exit codes: tests failed; no test was chosen. Any other ends it: an interruption, say.
first=0 second=0
pytest --alone=not -n 2 --dist loadfile --no-loadscope-reorder "$@" || first=$?
case $first in 0 | "$failed" | "$none") ;; *) exit "$first" ;; esac
pytest --alone=only "$@" || second=$?
case $first in 0) [ "$second" != "$none" ] || second=0 ;; "$failed") second=$failed ;; esac
exit "$second"
