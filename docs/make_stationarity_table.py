"""Fill in the table of docs/stationarity.md: eight processes whose truth is known, and what the verdict says of them.

python docs/make_stationarity_table.py [seeds]
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from thalweg.stationarity.assess import assess

PAGE = Path(__file__).parent / "stationarity.md"
BEGIN, END = "<!-- processes: begin -->", "<!-- processes: end -->"
STEPS, EVERY, FLOOR = 6000, 30, 0.05
SETTLED = "invariant regime"


def autoregressive(rng: np.random.Generator, n: int, tau: float) -> np.ndarray:
    """x_t = a x_{t-1} + e_t with unit variance and integrated time tau = (1 + a) / (1 - a)."""
    a = (tau - 1) / (tau + 1)
    early = int(20 * tau)
    noise = rng.standard_normal(n + early) * np.sqrt(1 - a**2)
    return lfilter([1.0], [1.0, -a], noise)[early:]


def stepped(rng: np.random.Generator, n: int) -> tuple[np.ndarray, str]:
    size = rng.choice([-1.0, 1.0])
    place = rng.uniform(0.2, 0.8)
    jumped = size * (np.arange(n) > place * n)
    return autoregressive(rng, n, 10) + jumped, "still training" if size < 0 else "unstable"


Process = Callable[[np.random.Generator, int], tuple[np.ndarray, "str | tuple[str, ...]"]]
PROCESSES: dict[str, Process] = {
    "AR(1), tau 1": lambda rng, n: (autoregressive(rng, n, 1), SETTLED),
    "AR(1), tau 10": lambda rng, n: (autoregressive(rng, n, 10), SETTLED),
    "AR(1), tau 40": lambda rng, n: (autoregressive(rng, n, 40), SETTLED),
    "random walk": lambda rng, n: (rng.standard_normal(n).cumsum(), ("still training", "unstable")),
    "drift, one deviation down in all": lambda rng, n: (
        autoregressive(rng, n, 10) - np.linspace(0, 1, n),
        "still training",
    ),
    "period-2 oscillation at the edge": lambda rng, n: (
        (-1.0) ** np.arange(n) * (1 + 0.1 * autoregressive(rng, n, 10)) + 0.05 * autoregressive(rng, n, 10),
        SETTLED,
    ),
    "step of one deviation, up or down": stepped,
    "heavy tails, t(1.5)": lambda rng, n: (rng.standard_t(1.5, n), SETTLED),
}


def judge(name: str, seed: int) -> str:
    """Return ``right``, ``undecided`` or ``wrong`` for one realisation."""
    rng = np.random.default_rng([seed, list(PROCESSES).index(name)])
    loss, truth = PROCESSES[name](rng, STEPS)
    level = np.full(STEPS, np.nan)
    probes = level[::EVERY].size
    level[::EVERY] = 1 + 0.3 * autoregressive(rng, probes, 3)  # the gradient stays away from zero throughout
    steps = STEPS + np.arange(STEPS)  # as the second half of a run
    log = {"step": steps, "loss": loss, "gradient_unbiased": level}
    found = assess(log, skip=0.0, floor=FLOOR, seed=seed)
    if found.kind == "undecided":
        return "undecided"
    return "right" if found.kind in ((truth,) if isinstance(truth, str) else truth) else "wrong"


def counts(seeds: int) -> dict[str, Counter[str]]:
    return {name: Counter(judge(name, seed) for seed in range(seeds)) for name in PROCESSES}


def table(found: dict[str, Counter[str]]) -> str:
    rows = ["| process | right | undecided | wrong |", "|---|---|---|---|"]
    for name, tally in found.items():
        total = tally.total()
        shares = (f"{tally[word] / total:.1%}" for word in ("right", "undecided", "wrong"))
        rows.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    found = counts(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    text = PAGE.read_text() if PAGE.exists() else f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
    print(table(found))
