#!/usr/bin/env bash
# Ratios of depurate to PyTorch on this machine's processor: tools/bench-vs-pytorch/run.sh [THREADS] [--ratios-only | --stable-diffusion]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

threads=${1:-$(nproc)}
venv=${BENCH_VENV:-target/bench-venv}
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch diffusers safetensors
fi
# the whole workspace, so that the build of the tensor framework is shared with everything else
cargo build --release --quiet --workspace --example timed
exec "$venv/bin/python" tools/bench-vs-pytorch/bench.py --program target/release/examples/timed --threads "$threads" "${@:2}"
