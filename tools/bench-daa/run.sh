#!/usr/bin/env bash
# Time of DAA-I and DAA-S against a transcription of their released code: tools/bench-daa/run.sh [--turns N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=${BENCH_DAA_VENV:-target/bench-daa-venv}
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet numpy scipy safetensors
fi
# the whole workspace, so that the build of the tensor framework is shared with everything else
cargo build --release --quiet --workspace --example timed_daa
# one thread for both: the released code's work is too small to gain from more
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 exec "$venv/bin/python" tools/bench-daa/released.py \
  --program target/release/examples/timed_daa "$@"
