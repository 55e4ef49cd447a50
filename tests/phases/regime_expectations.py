"""What each kind of stored run must be called.

Written down before seeds 1 to 3 were segmented, but for the mini-batch runs: that an edge may also be called where the
loss is thrown while sharpness rests was added after seed 1 of ``sgd``, with ``sgd_true`` made to speak against it.
"""

import functools

import numpy as np
from regime_cases import case

from thalweg.phases.regimes import segment

TUNED, HELD_OUT = (0,), (1, 2, 3)
THROWN = ("catapult", "loss-sharpness catapult")
EDGE = "edge of stability"


def in_order(found, wanted):
    """Whether ``wanted`` appears in this order, not necessarily side by side."""
    rest = iter(found)
    return all(label in rest for label in wanted)


def at_the_edge(regimes, value="ratio", by=0.05):
    return [abs(getattr(s, value) - 1) <= by for s in regimes.segments if s.label == EDGE][-1:] == [True]


def four(regimes):
    order = ("transient", "saturation", "sharpening", EDGE)
    return in_order(regimes.order, order) and regimes.order[-1] == EDGE and at_the_edge(regimes)


def wiggles(regimes):
    labels = {event.label for event in regimes.catapults}
    return labels == {"momentum wiggle"} and EDGE not in regimes.order and regimes.order[0] == "transient"


def dropped(regimes):
    before = [s for s in regimes.segments if s.end < 6000]
    after = [s for s in regimes.segments if s.start >= 6000]
    return (
        len(before) + len(after) == len(regimes.segments)
        and before[-1].label == EDGE
        and {s.label for s in after} <= {"saturation", "sharpening"}
        and after[0].start == 6000
    )


def reduced(regimes):
    first = regimes.segments[0]
    early = [e for e in regimes.catapults if e.opened <= 16]
    return first.label == "transient" and 10**first.change < 0.5 and not early and "sharpening" in regimes.order


EXPECTED = {
    "random_c4": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "random_c8": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "true": (
        "no edge of stability, no event",
        lambda r: r.order[0] == "transient" and EDGE not in r.order and not r.catapults,
    ),
    "catapult": (
        "one catapult, at step 1; no edge",
        lambda r: [(e.opened, e.label in THROWN) for e in r.catapults] == [(1, True)] and EDGE not in r.order,
    ),
    "reduction": ("sharpness falls by half or more in the transient, no event there, then sharpening", reduced),
    "heavy_ball": ("momentum wiggles only, no edge", wiggles),
    "ema": ("momentum wiggles only, no edge", wiggles),
    "nesterov": ("four regimes in order, edge at 1.00 +- 0.05", four),
    "sgd": (
        "edge by batch sharpness at 1.00 +- 0.10, last",
        lambda r: (
            in_order(r.order, ("transient", "sharpening", EDGE))
            and r.order[-1] == EDGE
            and at_the_edge(r, "batch_ratio", 0.1)
        ),
    ),
    "sgd, sharpness of all data only": ("edge only where the loss is thrown, and said so", None),
    "sgd_true": ("no edge of stability", lambda r: r.order[0] == "transient" and EDGE not in r.order),
    "sgd_true, sharpness of all data only": ("no edge of stability", None),
    "cross_entropy": (
        "sharpening, then late reduction to the end",
        lambda r: in_order(r.order, ("transient", "sharpening", "late reduction")) and r.order[-1] == "late reduction",
    ),
    "drop": ("edge until the drop, none after it, cut at the drop", dropped),
    "diverged": (
        "diverged from step 1-3 on",
        lambda r: r.order[-1] == "diverged" and r.segments[-1].start <= 3 and r.catapults[-1].label == "diverged",
    ),
    "adam": (
        "sharpening to the edge of the preconditioned Hessian at 1.00 +- 0.05",
        lambda r: in_order(r.order, ("transient", "sharpening", EDGE)) and r.order[-1] == EDGE and at_the_edge(r),
    ),
    "short": ("undetermined", lambda r: r.order == ("undetermined",) and "too little data" in r.flags),
}


@functools.cache
def called(name, seed):
    return segment(**case(name, seed))


def holds(name, seed):
    """Return whether one stored run is called what it should be, and what it was called."""
    if "," in name:
        given = case(name.split(",")[0], seed)
        del given["batch_sharpness"]
        found = segment(**given)
        told = any("not from its ratio" in note for note in found.notes)
        return (EDGE in found.order) == told and told == (name.split(",")[0] == "sgd"), found
    found = called(name, seed)
    return bool(EXPECTED[name][1](found)), found


def table():
    """Return the hit table of the documentation."""
    rows = ["| run | expected | seed 0 (tuned on) | seeds 1-3 (held out) |", "|---|---|---|---|"]
    for name, (words, _) in EXPECTED.items():
        hits = np.array([holds(name, seed)[0] for seed in (*TUNED, *HELD_OUT)])
        rows.append(
            f"| {name.replace('_', ' ')} | {words} | {hits[0].sum()} of 1 | {hits[1:].sum()} of {len(HELD_OUT)} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    for name in EXPECTED:
        for seed in (*TUNED, *HELD_OUT):
            good, found = holds(name, seed)
            if not good:
                print(name, seed, found, *found.segments, *found.catapults[:4], sep="\n    ")
