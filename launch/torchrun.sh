#!/usr/bin/env bash
# Starts one run by hand, as `optbench run` would:
#   optbench plan quickstart --write plans
#   bash launch/torchrun.sh plans/plan-0.json [--results DIR]
# TORCHRUN_ARGS holds further words for torchrun, --master-port=29501 say.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "usage: bash launch/torchrun.sh PLAN.json [--results DIR]   (optbench plan SWEEP --write DIR makes one)" >&2
    exit 2
fi
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
read -r ranks threads device < <("$python" - "$1" <<'PY'
import json, sys
spec = json.load(open(sys.argv[1]))["spec"]
print(spec["world_size"], spec["threads"], spec["device"])
PY
)
export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads PYTHONSAFEPATH=1 OPTBENCH_USER_PATH=${OPTBENCH_USER_PATH:-$PWD}
if [ "$device" = cpu ]; then
    export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu
fi
# shellcheck disable=SC2086  # several words on purpose
exec "$python" -m torch.distributed.run --nnodes=1 --nproc-per-node="$ranks" --standalone ${TORCHRUN_ARGS:-} \
    -m harness.worker "$@"
