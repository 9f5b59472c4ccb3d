#!/usr/bin/env bash
# Is this machine fit, and is optbench right on its accelerator? Every part is a row, whatever becomes of it.
#
#   bash tests/gpu/check.sh            everything: at most 9 minutes on one GPU
#   bash tests/gpu/check.sh correct    what must be right, side by side: at most 5 minutes
#   bash tests/gpu/check.sh timed      what is timed, alone on the machine: at most 4 minutes
#
# Environment:
#   OUT     folder of the answer (gpu-check): rows.tsv, summary.txt, facts.jsonl, machine.json, junit.xml,
#           log.tgz, results.tgz
#   PYTHON  interpreter with torch and optbench's dependencies (.venv/bin/python, else python3)
#   DEVICE  accelerator, or cpu: the same parts as far as a CPU takes them
#   ONLY    names of parts: only these run
#   END     seconds after which no further part starts
#   SITE    an archive of packages for a machine without a network (.gpu/site.tgz; tests/gpu/wheels.sh makes it)
#   APEX    a folder that holds a built Apex
#   DRY=1   print each part's command and run none
#
# It ends with 0 if every part ended with 0, else with 1.
set -u
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)
cd "$REPO" || exit 2
KIND=${1:-all}
case $KIND in all) LIMIT=525 ;; correct) LIMIT=285 ;; timed) LIMIT=225 ;; *)
    sed -n '2,20p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
END=${END:-$LIMIT} DEVICE=${DEVICE:-accelerator} SITE=${SITE:-$REPO/.gpu/site.tgz} OUT=${OUT:-$REPO/gpu-check}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=$REPO/.venv/bin/python
fi
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d "${TMPDIR:-/tmp}/optbench-check.XXXXXX")
mkdir "$WORK/log"
[ -n "${DRY:-}" ] || printf 'part\tkind\tcode\tbegan_s\ttook_s\tlast line\n' >"$OUT/rows.tsv"

finish() { # whatever happened, what there is comes back
    trap - EXIT
    if [ -z "${DRY:-}" ]; then
        "$PYTHON" "$HERE/summary.py" "$WORK" >"$OUT/summary.txt" 2>&1
        [ ! -e "$WORK/facts.jsonl" ] || cp "$WORK/facts.jsonl" "$OUT/"
        tar czf "$OUT/log.tgz" -C "$WORK" log
        (cd "$WORK" && find . -maxdepth 1 -name 'results-*' -printf '%f\0' | tar czf "$OUT/results.tgz" --null -T -)
        cat "$OUT/rows.tsv"
        printf '\n'
        cat "$OUT/summary.txt"
    fi
    rm -rf "$WORK"
    awk -F '\t' 'NR > 1 && $3 != 0 && $3 != "skipped" { bad = 1 } END { exit bad }' "$OUT/rows.tsv" 2>/dev/null
    exit $?
}
trap finish EXIT
trap 'exit 143' TERM INT

row() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$OUT/rows.tsv"; }

part() { # part NAME KIND SECONDS COMMAND…: one row; never fails the script
    local name=$1 kind=$2 limit=$3 began=$SECONDS code left
    shift 3
    [ "$KIND" = all ] || [ "$kind" = both ] || [ "$KIND" = "$kind" ] || return 0
    [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $name "* ]] || return 0
    if [ -n "${DRY:-}" ]; then
        printf '%s\t%s\t%s\t%s\n' "$name" "$kind" "$limit" "$(printf '%q ' "$@")"
        return 0
    fi
    left=$((END - began))
    if [ "$left" -lt 8 ]; then
        row "$name" "$kind" skipped "$began" 0 "no time was left; run it with ONLY=$name"
        return 0
    fi
    [ "$limit" -le "$left" ] || limit=$left
    timeout -k 5 "$limit" "$@" >"$WORK/log/$name.log" 2>&1
    code=$?
    row "$name" "$kind" "$code" "$began" "$((SECONDS - began))" \
        "$(grep -v '^[[:space:]]*$' "$WORK/log/$name.log" | tail -n 1 | tr '\t' ' ' | cut -c 1-200)"
    return 0
}
gpu_part() { # a part that only a GPU can tell
    if [ "$DEVICE" = cpu ] && [ -z "${DRY:-}" ]; then
        [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $1 "* ]] && return 0
        [ "$KIND" = all ] || [ "$KIND" = "$2" ] || return 0
        row "$1" "$2" skipped "$SECONDS" 0 "needs a GPU"
        return 0
    fi
    part "$@"
}
optimizers() { local each; for each in "$@"; do words+=(--optimizer "$each"); done; }
ob=("$PYTHON" -P -m harness.cli)
on=(--device "$DEVICE")

# ---- the environment ----------------------------------------------------------------------------------------------
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 COLUMNS=110
complete() { # whether the interpreter has what the archive would bring
    "$PYTHON" -P -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ["pydantic", "deepspeed", "torchao", "bitsandbytes"])))'
}
if [ -e "$SITE" ] && ! complete; then
    mkdir "$WORK/site"
    tar xzf "$SITE" -C "$WORK/site"
    export PYTHONPATH="$PYTHONPATH:$WORK/site"
fi
[ -z "${APEX:-}" ] || export PYTHONPATH="$PYTHONPATH:$APEX"
if [ "$DEVICE" != cpu ]; then # everything is compiled once more, as on a fresh machine
    export OPTBENCH_CACHE=$WORK/cache TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
fi
if [ -z "${DRY:-}" ]; then
    {
        nvidia-smi
        "$PYTHON" --version
        command -v nvcc && nvcc --version | tail -n 2
        nproc
        free -g
    } >"$WORK/log/machine.log" 2>&1
fi

# ---- what must be right: nothing here is timed, so parts run side by side ------------------------------------------
part kernels both 120 "$PYTHON" -P -m harness.kernels ensure fused_adam &
part kernels-offload correct 120 "$PYTHON" -P -m harness.kernels ensure cpu_adam &
gpu_part kernels-cuda correct 120 "$PYTHON" -P -m harness.kernels ensure fused_lion fused_lamb &
gpu_part facts correct 75 "$PYTHON" -P "$HERE/facts.py" "$WORK/facts.jsonl" &
[ "$KIND" = timed ] || wait # doctor and plan say what is built
part doctor both 60 "${ob[@]}" doctor --write-machine "$OUT/machine.json"
part plan both 30 "${ob[@]}" plan --matrix "${on[@]}"
wait

# A compiler's worker a core would fight over them: parts run side by side.
[ "$KIND" = timed ] || export TORCHINDUCTOR_COMPILE_THREADS=3
words=()
for algorithm in adadelta adagrad adam adamax adamw asgd nadam radam rmsprop rprop sgd sgd-momentum sgd-nesterov adafactor; do
    optimizers $algorithm/forloop $algorithm/foreach
done
part verify-native correct 165 "${ob[@]}" verify "${on[@]}" "${words[@]}" --results "$WORK/results-verify-native" &
words=()
optimizers muon/forloop lbfgs/forloop adagrad/fused adam/fused adamw/fused sgd/fused sgd-momentum/fused \
    sgd-nesterov/fused adamw/compiled sgd-momentum/compiled adamw/torchao-8bit
part verify-fused correct 165 "${ob[@]}" verify "${on[@]}" "${words[@]}" --results "$WORK/results-verify-fused" &
words=()
optimizers adamw/deepspeed lion/deepspeed adamw/apex sgd-momentum/apex lamb/apex novograd/apex adagrad/apex \
    adamw/bitsandbytes adamw/bitsandbytes-8bit lion/bitsandbytes ademamix/bitsandbytes adamw/bitsandbytes-paged \
    adamw/torchao-cpu-offload
part verify-libraries correct 165 "${ob[@]}" verify "${on[@]}" "${words[@]}" --results "$WORK/results-verify-libraries" &
part verify-engines correct 165 "${ob[@]}" verify "${on[@]}" --optimizer adamw/fused --nproc 1 --strategy single \
    --strategy ddp --strategy fsdp2 --strategy zero1 --strategy zero3 --results "$WORK/results-verify-engines" &
part strategies correct 165 "${ob[@]}" run "${on[@]}" --workload gpt --size mini --steps 20 --no-verify --nproc 1 \
    --optimizer adamw/fused --strategy ddp --strategy fsdp2 --strategy zero-redundancy --strategy zero0 \
    --strategy zero1 --strategy zero2 --strategy zero3 --strategy zero1-offload --set clip_norm=1.0 \
    --results "$WORK/results-strategies" &
gpu_part fp16 correct 165 "${ob[@]}" run "${on[@]}" --workload gpt --steps 20 --no-verify --precision fp16 --nproc 1 \
    --strategy single --strategy fsdp2 --optimizer adamw/fused --optimizer adamw/foreach --optimizer sgd/fused \
    --results "$WORK/results-fp16" &
gpu_part graph correct 165 "${ob[@]}" run "${on[@]}" --workload gpt --size nano --steps 60 --no-verify \
    --optimizer adamw/fused --optimizer adamw/foreach --optimizer adamw/apex --set strategy.cuda_graph=true \
    --results "$WORK/results-graph" &
part quickstart correct 165 "${ob[@]}" run quickstart "${on[@]}" --no-verify --results "$WORK/results-quickstart" &
gpu_part pytest correct 165 "$PYTHON" -m pytest -q -m gpu tests/gpu -n 4 -o timeout=160 --junitxml="$OUT/junit.xml" &
wait
unset TORCHINDUCTOR_COMPILE_THREADS

# ---- how fast: each part is alone on the machine -------------------------------------------------------------------
# AdamW in fp32 moves 28 bytes an element: its step beside what a copy reaches.
part step-124m timed 60 "${ob[@]}" run "${on[@]}" --workload parameters --size gpt2-124m --steps 60 --no-verify \
    --optimizer adamw/foreach --optimizer adamw/fused --optimizer adamw/compiled --optimizer adamw/deepspeed \
    --optimizer adamw/apex --results "$WORK/results-step"
part compare-gpt timed 90 "${ob[@]}" compare "${on[@]}" --workload gpt --size small --precision bf16 --no-verify \
    --budget 60s --arm adamw/forloop --arm adamw/foreach --arm adamw/fused --arm adamw/compiled \
    --results "$WORK/results-compare-gpt"
gpu_part energy timed 30 "${ob[@]}" run "${on[@]}" --workload gpt --size small --precision bf16 --steps 120 --no-verify \
    --optimizer adamw/fused --set evaluate_every=120 --results "$WORK/results-energy"
part compare-1b timed 60 "${ob[@]}" compare "${on[@]}" --workload parameters --size llama-1b --no-verify --budget 40s \
    --arm adamw/foreach --arm adamw/fused --results "$WORK/results-compare-1b"
