"""Time and weigh the Gram of a trajectory of checkpoints on disk, against what one would write without it.

Makes sharded half-precision checkpoints of a GPT-NeoX-shaped model, and computes the inner products of all increments
three ways, each in a process of its own: thalweg's streaming Gram; a loop over pairs of checkpoints; all checkpoints
stacked in one array, with scikit-learn's PCA. Bytes are what the process read from files, memory is the highest above
what it held before, and the pages of the files are dropped from the cache before each. Which limit binds is decided by
two measurements of the same minute: reading the same files from one end to the other, and multiplying in float32.

    python benchmarks/trajectory_map.py            64 checkpoints of 32 MiB, 2 GiB in all: minutes, 14 GiB of memory
    python benchmarks/trajectory_map.py --quick    16 checkpoints of 4 MiB: seconds
    python benchmarks/trajectory_map.py --save     also writes results/trajectory_map.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # BLAS under NumPy reads it once, at import

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import arguments, header, machine, save, table
from safetensors.torch import save_file

from thalweg.runs.sources import trajectory
from thalweg.trajectories import gram_plan, grams

Record = dict[str, Any]
BUDGET = 300 * 2**20
PYTHIA = {"parameters": 11_846_072_320, "checkpoints": 154}
SHARES = ("thalweg", "pairs", "stack")
PAIRED = 12
"""Checkpoints of which the loop over pairs does all pairs; its time and bytes are scaled up to all."""


def write(folder: Path, checkpoints: int, width: int, layers: int) -> int:
    """Write a random walk, two shards with an index a checkpoint; return the bytes of weights."""
    stream = torch.Generator().manual_seed(0)
    shapes = {"gpt_neox.embed_in.weight": (4 * width, width), "embed_out.weight": (4 * width, width)}
    for i in range(layers):
        block = f"gpt_neox.layers.{i}"
        shapes |= {
            f"{block}.attention.query_key_value.weight": (3 * width, width),
            f"{block}.attention.dense.weight": (width, width),
            f"{block}.mlp.dense_h_to_4h.weight": (4 * width, width),
            f"{block}.mlp.dense_4h_to_h.weight": (width, 4 * width),
            f"{block}.input_layernorm.weight": (width,),
        }
    names = list(shapes)
    weights = {name: 0.02 * torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    size = 0
    for index in range(checkpoints):
        place = folder / f"step{1000 * index}"
        place.mkdir()
        where = {}
        for shard, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
            file = f"model-{shard + 1:05d}-of-00002.safetensors"
            held = {name: weights[name].half() for name in part}
            save_file(held, place / file)
            where |= dict.fromkeys(part, file)
            size += sum(t.nbytes for t in held.values())
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        for w in weights.values():
            w.add_(torch.randn(w.shape, generator=stream), alpha=2e-4)
    os.sync()  # pages that are not on the disk yet cannot be dropped
    return size


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def drop_cache(folder: Path) -> None:
    """Take the files out of the page cache, so that the next reader reads the disk."""
    for path in files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bandwidth(folder: Path, clock: Callable[[], float] = time.perf_counter) -> float:
    """Read all files from one end to the other, 8 MiB at a time; bytes a second of the clock."""
    drop_cache(folder)
    buffer, total, start = bytearray(8 * 2**20), 0, clock()
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (clock() - start)


def product_rate(rows: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Multiply a block by its own transpose in float32; operations a second, counted as a full product."""
    block = np.random.default_rng(0).standard_normal((rows, 2**14)).astype(np.float32)
    rates = []
    for _ in range(20):
        start = clock()
        for at in range(0, 2**14, 2**11):
            part = block[:, at : at + 2**11]
            part @ part.T
        rates.append(2 * rows**2 * 2**14 / (clock() - start))
    return float(np.median(rates))


def status(key: str) -> int:
    found = re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def bytes_read() -> int:
    """Bytes that this process asked files for."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


def by_thalweg(folder: Path) -> np.ndarray:
    return grams(trajectory(folder), budget=BUDGET).increments()


def load(path: Path) -> torch.Tensor:
    """One checkpoint as a flat float32 vector, read whole, as a script would."""
    from safetensors.torch import load as parse

    parts = [t for file in files(path) for _, t in sorted(parse(file.read_bytes()).items())]
    return torch.cat([t.flatten().float() for t in parts])


def steps(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.name.removeprefix("step")))


def by_pairs(folder: Path) -> np.ndarray:
    """Two checkpoints at a time; inner products of the points, from which those of the increments follow."""
    paths = steps(folder)[:PAIRED]
    k = np.zeros((len(paths), len(paths)))
    for i, one in enumerate(paths):
        first = load(one)
        for j in range(i + 1):
            k[i, j] = k[j, i] = float(first @ load(paths[j]))
    return k[1:, 1:] - k[1:, :-1] - k[:-1, 1:] + k[:-1, :-1]


def by_stack(folder: Path) -> np.ndarray:
    """All checkpoints in one array, and scikit-learn's PCA with two components, as plots of paths are made."""
    from sklearn.decomposition import PCA

    x = torch.stack([load(path) for path in steps(folder)]).numpy()
    PCA(n_components=2).fit(x)
    u = x[1:] - x[:-1]
    return u @ u.T


WAYS = {"thalweg": by_thalweg, "pairs": by_pairs, "stack": by_stack}


def child(way: str, folder: Path) -> None:
    """Run one of the ways here, and print what it took."""
    small = trajectory(folder).window([0, 1]).select("*layernorm*")
    grams(small)  # libraries load what they load
    if way == "stack":
        import sklearn.decomposition  # noqa: F401
    drop_cache(folder)
    held, read = status("VmRSS"), bytes_read()
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    g = WAYS[way](folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([wall, cpu, status("VmHWM") - held, bytes_read() - read, g.tolist()]))


def measure(way: str, folder: Path) -> Record:
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:80]}
    wall, cpu, memory, read, g = json.loads(done.stdout)
    return {"wall": wall, "cpu": cpu, "memory": memory, "read": read, "g": g}


def run(checkpoints: int, width: int, layers: int, ways: tuple[str, ...]) -> Record:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder, checkpoints, width, layers)
        plan = gram_plan(trajectory(folder), BUDGET)
        disk, rate = [bandwidth(folder)], [product_rate(checkpoints)]
        rows = {way: measure(way, folder) for way in ways[:1]}
        disk.append(bandwidth(folder))
        rate.append(product_rate(checkpoints))
        rows |= {way: measure(way, folder) for way in ways[1:]}
        disk.append(bandwidth(folder))
        copied = bandwidth(folder, time.process_time)
    right = rows["thalweg"].get("g")
    for row in rows.values():
        g = row.pop("g", None)
        if g is not None and right is not None:
            mine = np.array(right)[: len(g), : len(g)]
            length = np.sqrt(np.diag(mine))
            row["difference"] = float(np.max(np.abs(np.array(g) - mine) / np.outer(length, length)))
            done = len(g) + 1
            if done < checkpoints:
                row["scaled"] = checkpoints * (checkpoints + 1) / (done * (done + 1))
    return {
        "checkpoints": checkpoints,
        "bytes": size,
        "parameters": size // 2 // checkpoints,
        "flops": plan.flops,
        "predicted": plan.peak_bytes,
        "bandwidth": disk,
        "product_rate": rate,
        "cpu_reading": size / copied,
        "cpu_products": plan.flops / product_rate(checkpoints, time.process_time),
        "product_rate_154": product_rate(PYTHIA["checkpoints"]),
        "rows": rows,
    }


def show(record: Record) -> str:
    """Format the table, the limit that binds, and what it means for the largest public trajectory."""
    total, ours = record["bytes"], record["rows"]["thalweg"]
    rows = []
    for way, row in record["rows"].items():
        if "failed" in row:
            rows.append([way, row["failed"], "", "", "", ""])
            continue
        scale = row.get("scaled", 1.0)
        memory, times = row["memory"] / 2**20, scale * row["read"] / total
        difference = "" if way == "thalweg" else f"{row['difference']:.0e}"
        rows.append(
            [
                way,
                f"{scale * row['wall']:.1f}",
                f"{scale * row['cpu']:.1f}",
                f"{times:.2f}",
                f"{memory:.0f}",
                difference,
            ]
        )
    names = {
        "thalweg": "thalweg `grams`",
        "pairs": f"two at a time, from {PAIRED} checkpoints",
        "stack": "stack + scikit-learn PCA",
    }
    rows = [[names[row[0]], *row[1:]] for row in rows]
    head = ["way", "wall s", "CPU s", "bytes read / bytes", "peak MiB", "difference from ours"]
    count, parameters = record["checkpoints"], record["parameters"]
    title = f"### {count} checkpoints of {parameters:,} half-precision parameters, {total / 2**30:.2f} GiB on disk"
    text = [title, "", table(head, rows), ""]
    if "failed" not in ours:
        disk, rate = float(np.median(record["bandwidth"])), float(np.median(record["product_rate"]))
        reading, multiplying = total / disk, record["flops"] / rate
        limit = "reading" if reading > multiplying else "multiplying"
        share = max(reading, multiplying) / ours["wall"]
        predicted, cores = record["predicted"], record["machine"]["cores"]
        text += [
            f"- Reading the files once, in order: {disk / 1e9:.2f} GB/s, {reading:.1f} s. The products alone: "
            f"{rate / 1e9:.0f} GFLOP/s (2 T^2 P, by a symmetric product), {multiplying:.1f} s. {limit.capitalize()} is "
            f"the limit; thalweg reaches {100 * share:.0f} % of it (80 % hoped for: "
            f"{'holds' if share >= 0.8 else 'does not hold'}).",
            f"- Products of {record['cpu_products']:.1f} s of CPU time are "
            f"{100 * record['cpu_products'] / ours['cpu']:.0f} % of thalweg's CPU time, reading (a copy by the system) "
            f"of {record['cpu_reading']:.1f} s {100 * record['cpu_reading'] / ours['cpu']:.0f} %; the rest converts, "
            f"subtracts, compares and waits for memory. {cores} cores take at least {ours['cpu'] / cores:.1f} s for "
            f"all of it; it kept {ours['cpu'] / ours['wall']:.2f} of them busy.",
            f"- Memory: {predicted / 2**20:.0f} MiB predicted, {ours['memory'] / 2**20:.0f} measured "
            f"({100 * ours['memory'] / predicted - 100:+.0f} %), {BUDGET / 2**20:.0f} allowed.",
            projection(disk, record["product_rate_154"]),
        ]
    return "\n".join(text)


def projection(disk: float, rate: float) -> str:
    points, parameters = PYTHIA["checkpoints"], PYTHIA["parameters"]
    size, flops = 2 * points * parameters, 2 * points**2 * parameters
    needed = flops / size
    return (
        f"- Pythia-12B: {points} x {parameters:,} x 2 bytes = {size / 1e12:.2f} TB, read once; 2 x {points}^2 x "
        f"{parameters:,} = {flops / 1e12:.0f} TFLOP. This disk: {size / disk / 3600:.2f} h; this processor at "
        f"{rate / 1e9:.0f} GFLOP/s (T = {points}): {flops / rate / 3600:.2f} h; the larger of the two is the least. A "
        f"disk of 7 GB/s would take {size / 7e9 / 60:.1f} min, and {7e9 * needed / 1e12:.1f} TFLOP/s to keep up with. "
        f"Two checkpoints at a time read {points * (points + 1) / 2 * 2 * parameters / 1e12:.0f} TB; stacked "
        f"in float32 they take {4 * points * parameters / 1e12:.1f} TB of memory."
    )


def main() -> None:
    options = arguments(__doc__.splitlines()[0], "trajectory_map")
    about = machine()
    case = (16, 128, 6) if options.quick else (64, 512, 4)
    record = {"machine": about, **run(*case, ways=SHARES)}
    text = f"{header(about)}\n\n{show(record)}"
    print(text)
    if options.save:
        save(options.out, "trajectory_map", record, text)
    wrong = [row for row in record["rows"].values() if row.get("difference", 0) > 1]
    if wrong or "failed" in record["rows"]["thalweg"]:
        sys.exit("the results disagree")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
