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
exec pytest "$@"
