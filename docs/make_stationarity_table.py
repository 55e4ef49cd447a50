"""Fill in the tables of docs/stationarity.md: processes whose truth is known, and two networks with BatchNorm.

python docs/make_stationarity_table.py             both tables, a minute
python docs/make_stationarity_table.py networks    the second one only
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from thalweg.stationarity.assess import assess
from thalweg.stationarity.verdict import Verdict

PAGE = Path(__file__).parent / "stationarity.md"
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
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


def networks() -> str:
    """Return the table of the two networks with BatchNorm, out of their stored columns."""
    sys.path.append(str(PAGE.parent.parent / "tests" / "stationarity"))
    from make_batchnorm_runs import load

    runs = {name: (columns, assess(columns)) for name, columns in load().items()}
    verdicts = [verdict for _, verdict in runs.values()]
    rows = [
        ("verdict", [verdict.kind for verdict in verdicts]),
        ("loss: mean, tau, split R-hat", [_loss(verdict) for verdict in verdicts]),
        ("U: mean, interval", [_level(verdict) for verdict in verdicts]),
        ("trend of U", [f"slope {v.level.trend.slope:+.2f}, p = {v.level.trend.p:.2g}" for v in verdicts]),
        ("A, same probes", [f"{verdict.level.biased:.3g}" for verdict in verdicts]),
        ("floor", [f"{verdict.level.floor:.2g}" for verdict in verdicts]),
        ("U in eval mode", [f"{verdict.level.evaluated:.2g}" for verdict in verdicts]),
        ("norm of the weights: start, window", [_norms(*run) for run in runs.values()]),
        ("weight sketch", [_sketch(verdict) for verdict in verdicts]),
    ]
    lines = [f"| | {' | '.join(runs)} |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows])


def _loss(verdict: Verdict) -> str:
    return f"{verdict.loss.mean.value:.3f}, {verdict.loss.tau:.0f} steps, {verdict.loss.rhat.worst:.3f}"


def _level(verdict: Verdict) -> str:
    low, high = verdict.level.interval
    return f"{verdict.level.unbiased:.2g}, {low:.2g} to {high:.2g}"


def _norms(columns: dict[str, np.ndarray], verdict: Verdict) -> str:
    norms = columns["weight_norm"]
    inside = norms[verdict.window.start :]
    inside = inside[~np.isnan(inside)]
    return f"{norms[0]:.1f}, {inside[0]:.1f} to {inside[-1]:.1f}"


def _sketch(verdict: Verdict) -> str:
    found = verdict.observables["weight_sketch"]
    return f"{found.state}: {found.n} snapshots worth {found.ess:.0f}"


def filled_in(text: str, key: str, content: str) -> str:
    """Return a page with new content between two marks."""
    begin, end = (mark.format(key) for mark in MARKS)
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    page = filled_in(PAGE.read_text(), "batchnorm", networks())
    if sys.argv[1:] != ["networks"]:
        page = filled_in(page, "processes", table(counts(200)))
    PAGE.write_text(page)
    print(page)
