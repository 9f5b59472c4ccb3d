#!/usr/bin/env bash
# Trains real models once per optimizer implementation and prints a table to decide from.
# Words after -- go to `optbench run`: bash launch/quickstart.sh -- --steps 40
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source=launch/install.sh
source launch/install.sh

if [ $# -gt 0 ]; then
    if [ "$1" != "--" ]; then
        say "usage: bash launch/quickstart.sh [-- WORDS FOR optbench run]"
        exit 2
    fi
    shift
fi
install_optbench deepspeed
# From the folder of whoever called, so that the commands that it prints work there.
cd "$here"
if [ "$here" != "$root" ]; then
    set -- --results "$root/results" "$@"
fi
exec "$root/.venv/bin/optbench" run quickstart "$@"
