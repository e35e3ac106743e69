#!/usr/bin/env python3
"""Times depurate and PyTorch on the same work, in turn, in one run, and prints the ratios.

    tools/bench-vs-pytorch/run.sh [THREADS] [--ratios-only | --stable-diffusion]

makes a virtual environment, builds the example `timed` and runs this. Ratios are ours / PyTorch: below 1, ours is faster.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel

ROUNDS = 7
# Runs of a turn, after some that are not measured; a turn counts with its median. The first runs of a turn are slow for
# both: their threads have to be woken, and the scheduler needs tens of milliseconds to spread them.
RUNS_PER_TURN = 5
WARM_UP_SECONDS = 0.1
# PyTorch's threads spin for a while after their work, on cores that ours would have: both are left to go to sleep.
PAUSE_SECONDS = 0.15


def settle():
    time.sleep(PAUSE_SECONDS)


def turn(run):
    warm = time.perf_counter() + WARM_UP_SECONDS
    run()
    while time.perf_counter() < warm:
        run()
    times = []
    for _ in range(RUNS_PER_TURN):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def leaf(*shape):
    n = 1
    for edge in shape:
        n *= edge
    return torch.sin(torch.arange(n, dtype=torch.float32) * 0.618).reshape(shape)


def conv(batch, c_in, size, c_out, **pass_):
    backward = pass_["pass"] != "forward"
    x, w, b = leaf(batch, c_in, size, size), leaf(c_out, c_in, 3, 3), leaf(c_out)
    for tensor in (x, w, b):
        tensor.requires_grad_(backward)
    grad = leaf(batch, c_out, size, size)

    def run():
        with torch.set_grad_enabled(backward):
            y = F.conv2d(x, w, b, padding=1)
        if backward:
            torch.autograd.grad(y, (x, w, b), grad)

    return run


def group_norm_silu(batch, channels, size, groups):
    x, w, b = leaf(batch, channels, size, size), leaf(channels), leaf(channels)
    for tensor in (x, w, b):
        tensor.requires_grad_(True)
    grad = leaf(batch, channels, size, size)
    return lambda: torch.autograd.grad(F.silu(F.group_norm(x, groups, w, b)), (x, w, b), grad)


def attention(heads, width, queries, keys, **pass_):
    backward = pass_["pass"] != "forward"
    q, k, v = leaf(1, heads, queries, width), leaf(1, heads, keys, width), leaf(1, heads, keys, width)
    for tensor in (q, k, v):
        tensor.requires_grad_(backward)
    grad = leaf(1, heads, queries, width)

    def run():
        with torch.set_grad_enabled(backward):
            y = F.scaled_dot_product_attention(q, k, v)
        if backward:
            torch.autograd.grad(y, (q, k, v), grad)

    return run


def attention_with_map(heads, width, queries, keys, **_):
    q, k, v = leaf(1, heads, queries, width), leaf(1, heads, keys, width), leaf(1, heads, keys, width)

    def run():
        with torch.no_grad():
            return torch.softmax(q @ k.transpose(-1, -2) * width**-0.5, -1) @ v

    return run


def linear(batch, tokens, wide_in, wide_out, dtype=torch.float32):
    x, w, b = (t.to(dtype) for t in (leaf(batch, tokens, wide_in), leaf(wide_out, wide_in), leaf(wide_out)))
    return lambda: F.linear(x, w, b)


def unet(dir, batch, size=None, **pass_):
    model = UNet2DModel.from_pretrained(dir, subfolder="unet", low_cpu_mem_usage=False)
    kind = pass_["pass"]
    model.requires_grad_(kind == "forward-backward")
    c, size = model.config.in_channels, size or model.config.sample_size
    x = leaf(batch, c, size, size)
    if dtype := pass_.get("dtype"):
        model, x = model.to(dtype), x.to(dtype)
    t = torch.full((batch,), 500)
    x.requires_grad_(kind == "input-gradient")

    def run():
        with torch.set_grad_enabled(kind != "forward"):
            y = model(x, t).sample
            if kind == "forward-backward":
                y.square().mean().backward()
                model.zero_grad(set_to_none=True)
            elif kind == "input-gradient":
                torch.autograd.grad(y.square().mean(), x)
            return y

    return run


def conditional_unet(config, batch, tokens):
    config = json.loads(Path(config).read_text())
    model = UNet2DConditionModel.from_config(config).eval()
    size, width = config["sample_size"], config["cross_attention_dim"]
    x, states = leaf(batch, config["in_channels"], size, size), leaf(batch, tokens, width)
    t = torch.full((batch,), 500)

    def run():
        with torch.no_grad():
            return model(x, t, states).sample

    return run


def training_steps(dir, batch, steps):
    model = UNet2DModel.from_pretrained(dir, subfolder="unet", low_cpu_mem_usage=False).train()
    ema = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = DDPMScheduler(1000)
    c, size = model.config.in_channels, model.config.sample_size
    images = leaf(batch, c, size, size)

    def run():
        for _ in range(steps):
            eps, t = torch.randn_like(images), torch.randint(0, 1000, (batch,))
            loss = F.mse_loss(model(scheduler.add_noise(images, eps, t), t).sample, eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch._foreach_lerp_(ema, [p.detach() for p in model.parameters()], 0.001)

    return run


WORK = {
    "conv": conv,
    "group-norm-silu": group_norm_silu,
    "attention": lambda tap=False, **work: (attention_with_map if tap else attention)(**work),
    "linear": linear,
    "unet": unet,
    "conditional-unet": conditional_unet,
    "training-steps": training_steps,
}


def unet_work(folder, batch, kind, name="wide", **more):
    return {"work": "unet", "dir": str(folder / name), "batch": batch, "pass": kind, **more}


def training_work(folder):
    return {"work": "training-steps", "dir": str(folder / "zoo"), "batch": 64, "steps": 3}


def cases(folder):
    """Name, work, the ratio that is aimed for, floating-point operations by definition (or none)."""
    for batch, width, size in ((16, 128, 32), (1, 320, 64)):
        for kind, bar in (("forward", 0.5), ("forward-backward", 0.5 if batch == 16 else 0.6)):
            work = {"work": "conv", "batch": batch, "c_in": width, "size": size, "c_out": width, "pass": kind}
            operations = 18 * batch * width**2 * size**2 * (1 if kind == "forward" else 3)
            yield f"conv 3x3 [{batch},{width},{size},{size}] {kind}", work, bar, operations
    work = {"work": "group-norm-silu", "batch": 16, "channels": 128, "size": 32, "groups": 32}
    yield "group norm + SiLU [16,128,32,32] forward-backward", work, 1.0, None
    for heads, queries, keys, width, kind, tap, bar in (
        (16, 4096, 77, 40, "forward", True, 1.0),
        (16, 4096, 77, 40, "forward", False, None),
        (16, 256, 256, 128, "forward-backward", False, 1.0),
        (16, 4096, 4096, 40, "forward", False, 1.3),
    ):
        work = {"work": "attention", "heads": heads, "width": width, "queries": queries, "keys": keys}
        work |= {"pass": kind, "tap": tap}
        name = "attention with its map" if tap else "attention, no map"
        # five products backward, one of them to have the map again
        operations = 4 * heads * queries * keys * width * (1 if kind == "forward" else 3.5)
        yield f"{name} [{heads} heads, {queries} q, {keys} k, {width}] {kind}", work, bar, operations
    work = {"work": "linear", "batch": 2, "tokens": 4096, "wide_in": 320, "wide_out": 1280}
    yield "linear [2,4096,320]->1280 forward", work, None, 2 * 2 * 4096 * 320 * 1280
    for kind in ("forward", "forward-backward", "input-gradient"):
        yield f"UNet (64,128,128,128), batch 8, 32x32, {kind}", unet_work(folder, 8, kind), 0.7, None
    yield "training step of the zoo's UNet, batch 64", training_work(folder), 0.7, None


def growth(run_ours, folder):
    """Forward passes of a small UNet as its input and its width grow."""
    print("\n| UNet forward | ours, ms | PyTorch, ms | ratio | ours, ns a sample, pixel and squared width |\n| --- | --- | --- | --- | --- |")
    grow = [(batch, 28, 32) for batch in (1, 4, 16, 64)]
    grow += [(1, size, 32) for size in (28, 64, 128, 256)]
    grow += [(1, 64, width) for width in (16, 32, 64, 128)]
    for batch, size, width in grow:
        work = unet_work(folder, batch, "forward", f"growth-{width}", size=size)
        a, b = compare(run_ours, work)
        each = 1e6 * a / (batch * size**2 * width**2)
        name = f"batch {batch}, {size}x{size}, width {width}"
        print(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} | {each:.3f} |", flush=True)


def stable_diffusion(run_ours):
    """One call of Stable Diffusion 1.5's UNet, and what maps of its attention cost; seconds, medians of turns."""
    config = str(Path("crates/depurate-diffusion/tests/full_size/sd1/unet.json").resolve())
    print("| Stable Diffusion 1.5's UNet, 64x64 latents, 77 tokens | ours, s | PyTorch, s | ratio | aimed at |\n| --- | --- | --- | --- | --- |")
    for batch in (1, 2):
        work = {"work": "conditional-unet", "config": config, "batch": batch, "tokens": 77}
        a, b = compare(run_ours, work)
        print(f"| {batch} latent{'s' * (batch > 1)} | {a / 1e3:.2f} | {b / 1e3:.2f} | {a / b:.2f} | 1.0 |", flush=True)
    print("\n| taps, 1 latent | ours, s | over no tap |\n| --- | --- | --- |")
    work = {"work": "conditional-unet", "config": config, "batch": 1, "tokens": 77}
    variants = {"none": work, "the prompt's maps at a quarter of the side": work | {"tapped": 4}, "the prompt's maps of every layer": work | {"tapped": 0}}
    times = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            settle()
            times[name].append(run_ours(json.dumps(variant)))
    for name, taken in times.items():
        over = statistics.median(t / n for t, n in zip(taken, times["none"]))
        print(f"| {name} | {statistics.median(taken):.2f} | {over:.3f} |", flush=True)


def half_precision(run_ours, folder):
    """What bf16 gains PyTorch, beside our f32."""
    print("\n| forward, PyTorch in bf16 | ours in f32, ms | PyTorch in bf16, ms | ratio | error of bf16 |\n| --- | --- | --- | --- | --- |")
    for name, work in (
        ("UNet (64,128,128,128), batch 8, 32x32", unet_work(folder, 8, "forward")),
        ("linear [2,4096,320]->1280", {"work": "linear", "batch": 2, "tokens": 4096, "wide_in": 320, "wide_out": 1280}),
    ):
        a, b = compare(run_ours, work, dtype=torch.bfloat16)
        shape = {k: v for k, v in work.items() if k != "work"}
        make = WORK[work["work"]]
        with torch.no_grad():
            exact, rounded = make(**shape)(), make(**shape, dtype=torch.bfloat16)().float()
        error = ((rounded - exact).square().mean() / exact.square().mean()).sqrt()
        print(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} | {error:.1e} |", flush=True)


def save_models(folder):
    torch.manual_seed(0)
    for name, options in (
        ("wide", {"sample_size": 32, "in_channels": 3, "channels": (64, 128, 128, 128), "layers": 2}),
        ("zoo", {"sample_size": 28, "in_channels": 1, "channels": (16, 32, 32), "layers": 1}),
        *(
            # without attention, whose work grows with the square of the pixels
            (f"growth-{width}", {"sample_size": 28, "in_channels": 3, "channels": (width, 2 * width), "layers": 1, "add_attention": False})
            for width in (16, 32, 64, 128)
        ),
    ):
        channels = options["channels"]
        model = UNet2DModel(
            sample_size=options["sample_size"],
            in_channels=options["in_channels"],
            out_channels=options["in_channels"],
            block_out_channels=channels,
            layers_per_block=options["layers"],
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=8,
            add_attention=options.get("add_attention", True),
        )
        DDPMPipeline(model, DDPMScheduler(1000)).save_pretrained(folder / name)


def anonymous_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no RssAnon: this measurement needs Linux")


def peak_above_start(command, environment, line):
    """Largest anonymous memory while the work is done, above that of the process before it; in MiB."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    process.stdin.write("ready?\n")
    process.stdin.flush()
    process.stdout.readline()
    start = peak = anonymous_bytes(process.pid)
    process.stdin.write(line + "\n")
    process.stdin.close()
    while process.poll() is None:
        try:
            peak = max(peak, anonymous_bytes(process.pid))
        except (FileNotFoundError, RuntimeError):  # it ended between the two calls
            break
        time.sleep(0.0005)
    process.wait()
    return (peak - start) / 2**20


def serve(threads):
    """Answers as the example `timed` does, with PyTorch's work."""
    torch.set_num_threads(threads)
    for line in sys.stdin:
        if line.startswith("{"):
            work = json.loads(line)
            print(turn(WORK[work.pop("work")](**work)), flush=True)
        else:
            print("ready", flush=True)


def memory(ours, theirs, environment, folder):
    print("\n| peak anonymous memory | ours, MiB | PyTorch, MiB | ratio | aimed at |\n| --- | --- | --- | --- | --- |")
    for name, work, bar in (
        ("training step of the zoo's UNet, batch 64", training_work(folder), 0.7),
        ("UNet (64,128,128,128), batch 8, 32x32, forward-backward", unet_work(folder, 8, "forward-backward"), ""),
        ("UNet (64,128,128,128), batch 8, 32x32, input-gradient", unet_work(folder, 8, "input-gradient"), ""),
    ):
        line = json.dumps(work)
        peaks = [[peak_above_start(command, environment, line) for _ in range(3)] for command in (ours, theirs)]
        a, b = (statistics.median(p) for p in peaks)
        print(f"| {name} | {a:.0f} | {b:.0f} | {a / b:.2f} | {bar} |", flush=True)


def compare(run_ours, work, **theirs_too):
    """Medians of both, in milliseconds, taken in turn."""
    line, steps = json.dumps(work), work.get("steps", 1)
    theirs = WORK[work["work"]](**{k: v for k, v in work.items() if k != "work"}, **theirs_too)
    times = ([], [])
    for _ in range(ROUNDS):
        settle()
        times[0].append(run_ours(line))
        settle()
        times[1].append(turn(theirs) / steps)
    return (1e3 * statistics.median(t) for t in times)


def main(program, threads, ratios_only, only_stable_diffusion):
    global ROUNDS, RUNS_PER_TURN
    if only_stable_diffusion:  # a call takes seconds
        ROUNDS, RUNS_PER_TURN = 3, 1
    torch.set_num_threads(threads)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    ours = [program, str(RUNS_PER_TURN)]
    theirs = [sys.executable, __file__, "--serve", "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_models(folder)
        process = subprocess.Popen(ours, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

        def run_ours(line):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        peak = 1 / run_ours('{"work": "peak"}')
        print(f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}, {threads} threads, {platform.machine()}")
        print(f"Fused multiply-adds on registers: {peak:.0f} GFLOP/s\n")
        if only_stable_diffusion:
            stable_diffusion(run_ours)
            process.stdin.close()
            process.wait()
            return
        print("| work | ours, ms | PyTorch, ms | ratio | aimed at | ours, GFLOP/s |\n| --- | --- | --- | --- | --- | --- |")
        for name, work, bar, operations in cases(folder):
            a, b = compare(run_ours, work)
            rate = f"{operations / a / 1e6:.0f}" if operations else ""
            print(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} | {bar or ''} | {rate} |", flush=True)
        if not ratios_only:
            growth(run_ours, folder)
            half_precision(run_ours, folder)
        process.stdin.close()
        process.wait()
        if not ratios_only:
            memory(ours, theirs, environment, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="answer on standard input instead, with PyTorch's work")
    parser.add_argument("--program", help="the built example `timed`")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ratios-only", action="store_true", help="the first table only")
    parser.add_argument("--stable-diffusion", action="store_true", help="Stable Diffusion's UNet at full size only")
    options = parser.parse_args()
    if options.serve:
        serve(options.threads)
    else:
        main(options.program, options.threads, options.ratios_only, options.stable_diffusion)
