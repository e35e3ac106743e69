"""Packs recorded results of the released DAA code into golden/daa: one folder a case, as every other golden number.

    python3 tools/golden/daa.py SOURCE     # needs numpy and safetensors

SOURCE holds, for each case, NAME.npy (maps), NAME.stages.safetensors (similarities and Laplacians) and NAME.json (the
rest), as a recording of `metric_calculate.AttentionMetrics` (Robin-WZQ/DAA, commit in the JSON) wrote them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CASES = {
    "real_sample": "maps of one prompt by Stable Diffusion, shipped with the released code; prompt and label unknown",
    "syn1_L5": "synthetic: strong EOS mass that decays fast",
    "syn3_L12_noisy": "synthetic: strong jitter of every pixel at every call",
    "syn5_L9_T51": "synthetic: weak EOS, one call more than the released code looks at",
}
# numbers of these recordings that become arrays; the others stay in case.json
ARRAYS = {
    "f32": ("delta_A_mean", "delta_A_eos", "X_norms"),
    "f64": ("delta_A_mean", "delta_A_eos"),
    "tight": ("y_at_integer_t_matrix_exponential",),
}
DIFFERENCES = ("max_abs_diff_tight_vs_expm", "max_abs_diff_reference_vs_expm_on_grid")
TOLERANCES = {
    "double precision": "f64.*: 1e-12 relative",
    "single precision": "f32.*: 2e-6 relative and 1e-7 absolute, from the dot product in single precision behind the norm. W and A "
    "as recorded rest on such norms D: the same for 1 - W = D / max D, and as often as there are nodes for a diagonal of A",
    "grid": "f64.t: the number of steps exactly, the first 8 to 1e-7, the others to 1e-4: where the right-hand side jumps, "
    "rounding is amplified",
    "scores": "1e-6 absolute; single and double precision differ by less than 1e-7",
    "exact": "tight.*: 1e-8; the two ways to compute it agree to 4e-10",
}


def in_double(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Similarities and Laplacians of the first 50 calls in double precision: the recorded ones come from norms in single."""
    nodes = maps[:50, 1:].astype(np.float64)
    count = nodes.shape[1]
    flat = nodes.reshape(50, count, -1)
    distance = np.sqrt(((flat[:, :, None] - flat[:, None]) ** 2).sum(-1))
    scale = distance.max((1, 2), keepdims=True)
    similarity = (scale - distance) / scale
    laplacian = similarity.transpose(0, 2, 1).copy()
    diagonal = np.arange(count)
    laplacian[:, diagonal, diagonal] = 1.0 - similarity.sum(1)
    return {"f64.W": similarity, "f64.A": laplacian}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    for name, origin in CASES.items():
        recorded = json.loads((source / f"{name}.json").read_text())
        maps = np.load(source / f"{name}.npy", allow_pickle=False)
        arrays = {"maps": maps.astype(np.float32), **load_file(source / f"{name}.stages.safetensors")}
        arrays |= in_double(maps)
        for part, keys in ARRAYS.items():
            for key in keys:
                arrays[f"{part}.{key}"] = np.array(recorded[part][key], dtype=np.float64)
        solved = recorded["f64"]["solve_ivp"]
        arrays["f64.t"] = np.array(solved["t"], dtype=np.float64)
        arrays["f64.y_first"] = np.array(solved["y"], dtype=np.float64)[:, :8]
        case = {
            "area": "daa",
            "case": name,
            "script": "tools/golden/daa.py",
            "origin": origin,
            "input_sha256": recorded["input_sha256"],
            "versions": recorded["versions"],
            "tolerances": TOLERANCES,
            "f32": {"scores": recorded["f32"]["scores"]},
            "f64": {
                "scores": recorded["f64"]["scores"],
                "n_accepted": solved["n_accepted"],
                "nfev": solved["nfev"],
            },
            "tight": {
                "daa_s_integer_grid_first7": recorded["tight"]["daa_s_integer_grid_first7"],
                **{key: recorded["tight"][key] for key in DIFFERENCES},
            },
        }
        folder = Path("golden/daa") / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "data.safetensors")
        (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")
        print(f"{folder}: maps {maps.shape}")


if __name__ == "__main__":
    main()
