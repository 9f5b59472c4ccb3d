# Sourced by launch/quickstart.sh and tests/run.sh: makes .venv with optbench and the extras named in $1.
#
# An active Python that already has torch >= 2.9 (a vendor's image, an environment with Apex built in it, ROCm) is
# used as it is: .venv then borrows its packages and its torch is never replaced. Otherwise the versions pinned in
# constraints.txt are installed. Both work again after an interruption: what was begun is finished.

say() { printf '%s\n' "$*" >&2; }

# What a Python is asked comes through descriptor 3: whatever it imports at its start may print.
asked() { "$@" 3>&1 1>&2; }

active_torch() { # the version of the active Python's torch when it is 2.9 or later, else nothing
    asked "$1" - <<'PY' 2>/dev/null || true
import importlib.metadata
import os
version = importlib.metadata.version("torch")
if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= (2, 9):
    os.write(3, version.encode())
PY
}

find_python() { # the active Python, but not our own environment's
    local candidate
    for candidate in "${PYTHON:-}" python3 python; do
        [ -n "$candidate" ] || continue
        candidate=$(command -v "$candidate") || continue
        case $candidate in "$PWD/.venv/"*) continue ;; esac
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$candidate"; return; }
    done
    say "optbench needs Python 3.11 or later on PATH (or PYTHON=/path/to/python3)."
    return 1
}

install_optbench() { # $1: extras, deepspeed or deepspeed,dev
    local python torch made wanted stamp=".venv/.installed-$1"
    python=$(find_python) || return 1
    torch=$(active_torch "$python")
    made="$(asked "$python" -c 'import os, sys; os.write(3, f"{sys.executable} {sys.version}".encode())') torch=$torch in $PWD"
    wanted="$made extras=$1 $(cat pyproject.toml constraints.txt | cksum)"
    if [ -x .venv/bin/optbench ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    rm -f "$stamp"
    # Packages borrowed from one Python must not meet another, and scripts name the folder that they were made in.
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        [ "$(cat .venv/.made-with 2>/dev/null || echo "$made")" != "$made" ]; then
        say "Making .venv with $python"
        "$python" -m venv --clear .venv || {
            say "The environment could not be made. On Debian and Ubuntu: apt-get install python3-venv"
            return 1
        }
        echo "$made" >.venv/.made-with
    fi
    local constraints=constraints.txt
    if [ -n "$torch" ]; then
        say "Using torch $torch of $python as it is."
        # The active interpreter's own folders, after those of .venv.
        asked "$python" -c \
            'import os, sys; os.write(3, "\n".join([p for p in sys.path if p.endswith("-packages")] + [""]).encode())' \
            >"$(asked .venv/bin/python -c \
                'import os, sysconfig; os.write(3, sysconfig.get_path("purelib").encode())')/borrowed.pth"
        constraints=.venv/constraints.txt
        echo "torch==$torch" >"$constraints"
    fi
    say "Installing optbench[$1] and what it needs (once; a few minutes with a CUDA build of torch) …"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" -e ".[$1]" >&2 || return 1
    echo "$wanted" >"$stamp"
}
