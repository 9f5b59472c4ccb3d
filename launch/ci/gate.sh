#!/usr/bin/env bash
# Gates the checkout in the current folder against its merge base: launch/ci/gate.sh [GATE.toml]
#
# The base is checked out beside it, in ../base, where [baseline] path = "../base" of the gate's file finds it. The
# verdict goes to $GITHUB_STEP_SUMMARY where there is one. Exits as optbench gate does: 0 passed, 1 regressed,
# 2 wrong words or file, 3 inconclusive, 4 invalid.
#
# BASE_REF: what to be merged into, default origin/main. HEAD_REF: what to gate, default HEAD.
set -euo pipefail

gate=${1:-gate.toml}
base_ref=${BASE_REF:-origin/main}
verdict=$(mktemp)
trap 'rm -f "$verdict"' EXIT

say() { printf '%s\n' "$*" >&2; }

summary() { # standard input, for the job's page; where there is none, the log has said all of it already
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then cat >>"$GITHUB_STEP_SUMMARY"; else cat >/dev/null; fi
}

invalid() { # $1: why there is nothing to hold the change against
    say "$1"
    printf '### ⛔ optbench gate: invalid\n\n%s\n' "$1" | summary
    exit 4
}

# Of what git prints the commit: a wrapper of it may print lines of its own.
base=$(git merge-base "$base_ref" "${HEAD_REF:-HEAD}" | grep -xE '[0-9a-f]{40,64}' | tail -n 1) ||
    invalid "No merge base with $base_ref: fetch the whole history (fetch-depth: 0), or set BASE_REF."
git worktree prune
if [ -e ../base ]; then
    git -C ../base checkout --quiet --detach "$base" || invalid "../base is no checkout of this repository."
else
    git worktree add --quiet --detach ../base "$base" || invalid "../base could not be checked out."
fi
say "gating $(git rev-parse --short HEAD) against $(git rev-parse --short "$base"), the merge base with $base_ref"

code=0
optbench gate "$gate" --markdown "$verdict" || code=$?
if [ -s "$verdict" ]; then
    summary <"$verdict"
else
    say "optbench gate ended with code $code before there was a verdict"
    printf '### ⛔ optbench gate: no verdict\n\nIt ended with code %s before there was one; see the log.\n' "$code" | summary
fi
exit "$code"
