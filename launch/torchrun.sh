#!/usr/bin/env bash
# Starts one run by hand, as `optbench run` would:
#   optbench plan quickstart --write plans
#   bash launch/torchrun.sh plans/plan-0.json [--results DIR]
# TORCHRUN_ARGS holds further words for torchrun, --master-port=29501 say; for several nodes, on each:
#   TORCHRUN_ARGS="--nnodes=2 --node-rank=0 --master-addr=HOST --master-port=29501" bash launch/torchrun.sh …
set -euo pipefail
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
exec "$python" -P -m launch.hand "$@"
