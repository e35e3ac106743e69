#!/usr/bin/env python3
"""Checks that a text-to-image directory saved by depurate loads in diffusers and gives the same image.

    pip install torch diffusers transformers safetensors
    cargo run --release -p depurate-diffusion --example text_to_image -- MODEL runs/painted "a red fish"
    python tools/diffusers/compare_text_to_image.py runs/painted

Exits with 1 if a pixel, from 0 to 1, differs by more than 1e-4.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel

TOLERANCE = 1e-4


def main(folder: Path) -> int:
    _, report = CLIPTextModel.from_pretrained(folder / "model" / "text_encoder", output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    if problems:
        print(f"loading the text encoder reported {problems}")
        return 1
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    answers = load_file(folder / "answers.safetensors")
    how = json.loads((folder / "answers.json").read_text())
    with torch.no_grad():
        want = pipeline(
            how["prompt"],
            guidance_scale=how["guidance"],
            num_inference_steps=how["steps"],
            latents=answers["latents"],
            output_type="pt",
        ).images
    difference = (want - answers["image"]).abs().max().item()
    spread = want.std().item()
    print(f"{type(pipeline.scheduler).__name__}: largest difference {difference:.2e} (allowed {TOLERANCE:.0e}), "
          f"spread of the image {spread:.2e}")
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
