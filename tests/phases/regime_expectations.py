"""What each kind of run must be called: ``python tests/phases/regime_expectations.py [FILE]`` prints the hit table.

Written down before seeds 1 to 3 were segmented, but for the mini-batch runs: that an edge may also be called where the
loss is thrown while sharpness rests was added after seed 1 of ``sgd``, with ``sgd_true`` made to speak against it.
What is expected where a run does not come to the threshold in time (`arrived`) was added after seed 1 of ``drop``;
where one comes to it that should not (`touches`), after seed 8 of ``catapult``; that an edge may go unseen in the loss
of an ``sgd`` run that does not arrive, after seed 8 of that. Seeds 9 to 18 were segmented after all of these.
"""

import functools
import sys

import numpy as np
from regime_cases import case, stored

from thalweg.phases.regimes import segment

SEEDS = (0, 1, 2, 3)
KAPPA = {"gd": 2.0, "heavy_ball": 3.8, "ema": 38.0, "nesterov": 3.8 / 2.8, "adam": 38.0}
THROWN = ("catapult", "loss-sharpness catapult")
EDGE = "edge of stability"


def in_order(found, wanted):
    """Whether ``wanted`` appears in this order, not necessarily side by side."""
    rest = iter(found)
    return all(label in rest for label in wanted)


def at_the_edge(regimes, value="ratio", by=0.05):
    return [abs(getattr(s, value) - 1) <= by for s in regimes.segments if s.label == EDGE][-1:] == [True]


def arrived(given, before=np.inf):
    """Whether the last measurements stand at the threshold, by nothing but the curves.

    Of full batches the median of three lies above 0.95; of batch sharpness, which is noisy, that of twelve above 0.9.
    """
    sharp = given.get("batch_sharpness", given["sharpness"])
    count, least = (12, 0.9) if "batch_sharpness" in given else (3, 0.95)
    chosen = given["sharpness_steps"] < before
    rate = given["learning_rate"][given["sharpness_steps"][chosen]]
    return np.median((sharp[chosen] * rate / KAPPA[given["rule"]])[-count:]) >= least


def touches(given):
    """Whether, after the transient, three measurements in a row stand at the threshold: then an edge is no mistake."""
    late = given["sharpness_steps"] > 16
    rate = given["learning_rate"][given["sharpness_steps"][late]]
    near = given["sharpness"][late] * rate / KAPPA[given["rule"]] >= 0.95
    return bool((near[:-2] & near[1:-1] & near[2:]).any())


def approaches(regimes):
    return regimes.order[-1] == "sharpening" and EDGE not in regimes.order


def four(regimes, given):
    if not arrived(given):
        return in_order(regimes.order, ("transient", "saturation")) and approaches(regimes)
    order = ("transient", "saturation", "sharpening", EDGE)
    return in_order(regimes.order, order) and regimes.order[-1] == EDGE and at_the_edge(regimes)


def batches(regimes, given):
    if not arrived(given):
        return approaches(regimes)
    order = ("transient", "sharpening", EDGE)
    return in_order(regimes.order, order) and regimes.order[-1] == EDGE and at_the_edge(regimes, "batch_ratio", 0.1)


def adam(regimes, given):
    if not arrived(given):
        return approaches(regimes)
    return (
        in_order(regimes.order, ("transient", "sharpening", EDGE))
        and regimes.order[-1] == EDGE
        and at_the_edge(regimes)
    )


def wiggles(regimes, given):
    labels = {event.label for event in regimes.catapults}
    return labels == {"momentum wiggle"} and EDGE not in regimes.order and regimes.order[0] == "transient"


def dropped(regimes, given):
    before = [s for s in regimes.segments if s.end < 6000]
    after = [s for s in regimes.segments if s.start >= 6000]
    return (
        len(before) + len(after) == len(regimes.segments)
        and before[-1].label == (EDGE if arrived(given, 6000) else "sharpening")
        and (before[-1].label == EDGE) == any(s.label == EDGE for s in before)
        and {s.label for s in after} <= {"saturation", "sharpening"}
        and after[0].start == 6000
    )


def reduced(regimes, given):
    first = regimes.segments[0]
    early = [e for e in regimes.catapults if e.opened <= 16]
    return first.label == "transient" and 10**first.change < 0.5 and not early and "sharpening" in regimes.order


EXPECTED = {
    "random_c4": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "random_c8": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "true": (
        "no edge of stability, no event",
        lambda r, given: r.order[0] == "transient" and (EDGE not in r.order or touches(given)) and not r.catapults,
    ),
    "catapult": (
        "one catapult, at step 1; no edge",
        lambda r, given: (
            [(e.opened, e.label in THROWN) for e in r.catapults] == [(1, True)]
            and (EDGE not in r.order or touches(given))
        ),
    ),
    "reduction": ("sharpness falls by half or more in the transient, no event there, then sharpening", reduced),
    "heavy_ball": ("momentum wiggles only, no edge", wiggles),
    "ema": ("momentum wiggles only, no edge", wiggles),
    "nesterov": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "sgd": ("edge by batch sharpness at 1.00 +- 0.10, last", batches),
    "sgd, sharpness of all data only": ("edge only where the loss is thrown, and said so", None),
    "sgd_true": ("no edge of stability", lambda r, given: r.order[0] == "transient" and EDGE not in r.order),
    "sgd_true, sharpness of all data only": ("no edge of stability", None),
    "cross_entropy": (
        "sharpening, then late reduction to the end",
        lambda r, given: (
            in_order(r.order, ("transient", "sharpening", "late reduction")) and r.order[-1] == "late reduction"
        ),
    ),
    "drop": ("edge until the drop, none after it, cut at the drop", dropped),
    "diverged": (
        "diverged from step 1-3 on",
        lambda r, given: (
            r.order[-1] == "diverged" and r.segments[-1].start <= 3 and r.catapults[-1].label == "diverged"
        ),
    ),
    "adam": ("sharpening to the edge of the preconditioned Hessian at 1.00 +- 0.05", adam),
    "short": ("undetermined", lambda r, given: r.order == ("undetermined",) and "too little data" in r.flags),
}


@functools.cache
def called(name, seed):
    return segment(**case(name, seed))


def judged(name, given):
    """Return whether one run is called what it should be, and what it was called."""
    kind = name.split(",")[0]
    if kind != name:
        there = arrived(given)
        del given["batch_sharpness"]
        found = segment(**given)
        told = any("not from its ratio" in note for note in found.notes)
        expected = told or not there if kind == "sgd" else not told
        return (EDGE in found.order) == told and expected, found
    found = segment(**given)
    return bool(EXPECTED[name][1](found, given)), found


def holds(name, seed, runs=None):
    """Return the same for one stored run, or for one row of other ``runs``."""
    return judged(name, case(name.split(",")[0], seed, runs))


def table(runs=None, head="stored seeds 0-3"):
    """Return the hit table of the documentation."""
    rows = [f"| run | expected | {head} |", "|---|---|---|"]
    for name in kinds_of(runs):
        words = EXPECTED[name][0]
        hits = [holds(name, seed, runs)[0] for seed in rows_of(name, runs)]
        rows.append(f"| {name.replace('_', ' ')} | {words} | {sum(hits)} of {len(hits)} |")
    return "\n".join(rows)


def kinds_of(runs=None):
    return [name for name in EXPECTED if name.split(",")[0] in (runs or stored())]


def rows_of(name, runs=None):
    return range(len((runs or stored())[name.split(",")[0]]["loss"]))


if __name__ == "__main__":
    others = stored(sys.argv[1]) if len(sys.argv) > 1 else None
    print(table(others, "these runs" if others else "stored seeds 0-3"))
    for name in kinds_of(others):
        for row in rows_of(name, others):
            good, found = holds(name, row, others)
            if not good:
                print(name, row, found, *found.segments, *found.catapults[:4], sep="\n    ")
