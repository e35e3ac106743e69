#!/usr/bin/env python3
"""Checks that a directory saved by depurate loads in diffusers and gives the same outputs.

    pip install torch diffusers safetensors
    cargo run --release -p depurate-diffusion --example forward -- zoo/mnist-a runs/forward
    python tools/diffusers/compare.py runs/forward

Exits with 1 if an output differs by more than 1e-5 relative to the largest output.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file

TOLERANCE = 1e-5


def main(folder: Path) -> int:
    unet, report = UNet2DModel.from_pretrained(
        folder / "model", subfolder="unet", output_loading_info=True, low_cpu_mem_usage=False
    )
    problems = {key: value for key, value in report.items() if value}
    if problems:
        print(f"loading reported {problems}")
        return 1
    DDPMPipeline.from_pretrained(folder / "model", low_cpu_mem_usage=False)
    answers = load_file(folder / "answers.safetensors")
    with torch.no_grad():
        want = unet.eval()(answers["x_t"], answers["t"].long()).sample
    difference = (want - answers["out"]).abs().max() / want.abs().max()
    print(f"largest difference relative to the largest output: {difference:.2e} (allowed {TOLERANCE:.0e})")
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
