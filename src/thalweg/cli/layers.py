"""The stage of ``thalweg spectrum`` that looks at the block of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from thalweg._vectors import Layout
from thalweg.cli.estimates import CURVATURE, FEWEST_TRACE, Bench, Finding
from thalweg.runs.analyses import variable
from thalweg.spectra.layer_table import Layer
from thalweg.spectra.layers import LayerPlan, layer_blocks, layer_groups

MOST = 40
"""More layers than this are put together by the first parts of their names."""


def groups_of(layout: Layout) -> dict[str, list[str]]:
    """Return the parameters of each layer."""
    return layer_groups(layout.names, MOST)


def least_products(layout: Layout) -> int:
    """Return the products below which some layer would have no standard error: half for its eigenvalue."""
    sizes = dict(zip(layout.names, layout.sizes))
    return sum(2 * min(FEWEST_TRACE, sum(sizes[name] for name in members)) for members in groups_of(layout).values())


def layers(bench: Bench) -> Iterator[Finding]:
    """Examine one layer after the other; each finding holds all so far."""
    plan, layout = bench.plan, bench.subject.problem.layout
    groups = groups_of(layout)
    rows: list[Layer] = []
    for row in layer_blocks(
        bench.operator,
        layout,
        layers={name: frozenset(members).__contains__ for name, members in groups.items()},
        plan=LayerPlan(k=1, tol=plan.tol, target=plan.target, max_products=bench.share, seed=plan.seed),
    ):
        rows.append(row)
        yield Finding(_said(rows), table(rows), _facts(bench, rows, whole=len(rows) == len(groups)))


def table(rows: Sequence[Layer]) -> xr.Dataset:
    """Return the rows as labelled columns."""
    columns = (
        ("layer_parameters", [float(row.parameters) for row in rows], "1", "parameters of each layer"),
        ("layer_eigenvalue", [float(row.eigenvalues[0]) for row in rows], CURVATURE, "largest eigenvalue of its block"),
        ("layer_residual", [float(row.residuals[0]) for row in rows], CURVATURE, "residual of that eigenvalue"),
        ("layer_trace", [float(row.trace.value) for row in rows], CURVATURE, "trace of each block"),
        (
            "layer_trace_standard_error",
            [float(row.trace.standard_error) for row in rows],
            CURVATURE,
            "standard error of that trace",
        ),
        ("layer_products", [float(row.products) for row in rows], "products", "products of each layer"),
    )
    return xr.Dataset(
        {name: variable("layer", values, units, words) for name, values, units, words in columns},
        coords={"layer": variable("layer", np.array([row.name for row in rows], np.str_), "1", "layer")},
    )


def _said(rows: Sequence[Layer]) -> str:
    best = max(rows, key=lambda row: float(row.trace.value))
    value, error = float(best.trace.value), float(best.trace.standard_error)
    return f"{len(rows)} layers, the largest trace in {best.name}: {value:.4g} ± {error:.2g}"


def _facts(bench: Bench, rows: Sequence[Layer], *, whole: bool) -> dict[str, object]:
    pairs = {bench.reason(row.stop, "--tol") for row in rows if not row.stop.converged}
    traces = {bench.reason(row.trace.stop, "--target") for row in rows if not row.trace.stop.converged}
    unmet = sorted(pairs | traces)
    return {"layers_cover": whole, "layers_converged": not unmet, "layers_stop": " ".join(unmet)}
