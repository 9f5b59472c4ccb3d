#!/usr/bin/env bash
# Packs what a machine with torch and no network lacks into .gpu/site.tgz (about 9 MB): Python 3.12, x86-64, CUDA 13.
# Run it where packages can be installed; torch must be there, too, for DeepSpeed's setup reads its version.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-$REPO/.venv/bin/python}
mkdir -p "$REPO/.gpu"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
pinned() { grep -i -E "^($1)==" "$REPO/constraints.txt"; }

DS_BUILD_OPS=0 "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$WORK" "$(pinned deepspeed)" # pure Python
mapfile -t packages < <(pinned 'pydantic|deepspeed|torchao|bitsandbytes|heavyball|pytorch-optimizer|schedulefree|opt_einsum')
core=$("$PYTHON" -c 'import importlib.metadata as m; print(m.version("pydantic-core"))')
"$PYTHON" -m pip install -q --no-deps --no-compile --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --find-links "$WORK" --target "$WORK/site" \
    "${packages[@]}" "pydantic-core==$core" annotated-types typing-extensions typing-inspection hjson
# Kernels for other CUDA versions, and torchao's for a later torch: its optimizers are Python.
find "$WORK/site/bitsandbytes" -name '*.so' ! -name libbitsandbytes_cpu.so ! -name libbitsandbytes_cuda130.so -delete
find "$WORK/site/torchao" -name '*.so' -delete
tar czf "$REPO/.gpu/site.tgz" -C "$WORK/site" .
ls -l "$REPO/.gpu/site.tgz"
