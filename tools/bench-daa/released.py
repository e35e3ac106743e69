"""DAA-I and DAA-S as their released code computes them, in NumPy and SciPy, timed beside depurate on the same maps.

A transcription of the formulas (crates/depurate-defense/src/detect/input_level/daa_i.rs and daa_s.rs state them), in the
released code's order of work: norms map by map, every call's similarities and Laplacian, the solution to the last call.
Prints a table in Markdown, and fails if the scores differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.integrate import solve_ivp

CALLS = 50
SCORE_TOLERANCE = 1e-6


def daa_i(maps: np.ndarray) -> float:
    """Changes of every token over all calls; the score sums changes 3 and 4."""
    tokens = maps.shape[1]
    mean, eos = [], []
    for t in range(CALLS - 1):
        changes = [np.linalg.norm(maps[t + 1][token] - maps[t][token]) for token in range(tokens)]
        mean.append(sum(changes[1:-1]) / tokens)
        eos.append(changes[-1])
    return float(sum(eos[t] - mean[t] for t in (3, 4)))


def laplacian(maps: np.ndarray) -> np.ndarray:
    """Negated graph Laplacian of one call's maps, without BOS."""
    nodes = len(maps)
    distance = np.zeros((nodes, nodes))
    for i in range(nodes):
        for j in range(nodes):
            distance[i, j] = np.linalg.norm(maps[i] - maps[j])
    scale = distance.max() + distance.min()
    similarity = (scale - distance) / scale
    system = similarity.T.copy()
    for i in range(nodes):
        system[i, i] = -(similarity[:, i].sum() - similarity[i, i])
    return system


def daa_s(maps: np.ndarray) -> float:
    """Increments of the states between the solver's own first eight points."""
    nodes = maps.shape[1] - 1
    systems = [laplacian(maps[t][1:]) for t in range(CALLS)]
    decay = np.diag([-1.0] * (nodes - 1) + [-10.0])
    start = np.array([np.linalg.norm(maps[0][token]) for token in range(1, nodes + 1)])
    solved = solve_ivp(lambda t, x: decay @ x + systems[int(t)] @ x, (0, CALLS - 1), start)
    increments = np.diff(solved.y, axis=1)
    return float(-np.sum(increments[-1, :7] - increments[:-1, :7].mean(axis=0)))


def seconds(work, turns: int) -> float:
    """Median time of a call, after one that is not measured."""
    work()
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--maps", type=Path, default=Path("golden/daa/real_sample/data.safetensors"))
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    maps = load_file(arguments.maps)["maps"]
    tokens = maps.shape[1]
    command = [arguments.program, str(arguments.maps), str(tokens)]
    rows = []
    for turn in range(arguments.turns):
        # in turn, so that both see the same minutes of the machine
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append((ours, seconds(lambda: (daa_i(maps), daa_s(maps)), 3)))
    scores = {"daa_i": daa_i(maps), "daa_s": daa_s(maps)}
    for name, score in scores.items():
        difference = abs(score - rows[0][0][name])
        if difference > SCORE_TOLERANCE:
            sys.exit(f"{name}: {score} here, {rows[0][0][name]} in depurate")
        print(f"{name} {score:.9f}, difference {difference:.1e}")
    theirs = statistics.median(row[1] for row in rows)
    print(f"\nMaps {list(maps.shape)}, float32; medians of {arguments.turns} turns; NumPy and SciPy: {theirs * 1e3:.2f} ms\n")
    print("| both scores of one prompt | depurate, us | NumPy and SciPy, ms | times faster |")
    print("| --- | --- | --- | --- |")
    for key, what in (
        ("both_s", "what the scores need (6 calls, the solver's first 7 steps)"),
        ("all_calls_s", "as much as the released code computes (all changes, all 50 calls, the solver to its end)"),
    ):
        own = statistics.median(row[0][key] for row in rows)
        print(f"| {what} | {own * 1e6:.1f} | {theirs * 1e3:.2f} | {theirs / own:.0f} |")


if __name__ == "__main__":
    main()
