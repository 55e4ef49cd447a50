"""The page of a spectrum, and its sections in the page of a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from thalweg.errors import ThalwegError
from thalweg.report import spectrum_facts, spectrum_figures, spectrum_words
from thalweg.report.frame import beside, framed, provenance_section, write_page
from thalweg.report.numbers import number, seconds, share_error, with_error
from thalweg.report.shell import figure_section, section, table

KINDS = (
    "spectrum",
    "spectrum-preconditioned",
    "spectrum-gauss-newton",
    "spectrum-gauss-newton-preconditioned",
    "spectrum-fisher",
    "spectrum-fisher-preconditioned",
)
"""What analyses are called before their step; the first one is shown where there are several of a step."""

FACTS = (
    ("source", "source"),
    ("operator", "operator"),
    ("preconditioned", "preconditioned"),
    ("optimizer", "update rule"),
    ("model", "model"),
    ("dimension", "parameters"),
    ("samples", "samples"),
    ("dtype", "dtype"),
    ("device", "device"),
    ("seed", "seed"),
    ("target", "relative standard error asked for"),
    ("edge_convention", "convention of the threshold"),
    ("eigenvalues_method", "eigensolver"),
    ("eigenvalues_stop", "eigenvalues ended because"),
    ("trace_method", "method of the trace"),
    ("trace_stop", "trace ended because"),
    ("density_stop", "density ended because"),
    ("layers_stop", "layers ended because"),
    ("created", "created"),
    ("thalweg", "thalweg"),
    ("torch", "torch"),
    ("schema", "schema of the file"),
)
"""What the table of provenance shows, and under which name."""

DENSITY = (
    "How many eigenvalues there are per unit, on a logarithmic axis, each smoothed to a small hill. The band is one "
    "standard error of the estimate. Diamonds are eigenvalues found singly; each stands at the height that one "
    "eigenvalue alone has."
)
LAYERS = (
    "The curvature within each layer, all other weights held fixed. The traces of all layers add up to the trace of "
    "the whole; the largest eigenvalue of a layer is at most that of the whole."
)


def write_spectrum_page(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a spectrum.

    Args:
        path: The netCDF file that ``thalweg spectrum`` wrote.
        out: Where to write; default beside it, ending in ``.html``.

    Returns:
        The path of the page, one file that opens without a network.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
        StorageError: The page cannot be written; nothing is left behind.
    """
    from thalweg.runs.analyses import read_analysis

    return write_page(beside(path, out), render_spectrum(read_analysis(Path(path), "spectrum")))


def newest_analysis(run: Path) -> xr.Dataset | None:
    """Return the spectrum of the latest step in a run folder, the plain Hessian's if there are several of it.

    None where there is none that can be read: the run's own page does not depend on it.
    """
    from thalweg.runs.analyses import analyses, read_analysis

    try:
        found = [(step, -rank, file) for rank, kind in enumerate(KINDS) for step, file in analyses(run, kind)]
        return read_analysis(max(found)[2], "spectrum") if found else None
    except ThalwegError:
        return None


def render_spectrum(data: xr.Dataset) -> str:
    """Return the page as text.

    Args:
        data: A spectrum, as ``thalweg spectrum`` writes it.
    """
    words = spectrum_words
    return framed(
        "Spectrum",
        str(data.attrs.get("name", "spectrum")),
        _under(data),
        [*_sections(data, ""), _eigenvalue_table(data), _cost(data), provenance_section(data.attrs, FACTS)],
        headline=" ".join(words.headline(data)),
        verdicts=words.verdicts(data),
        caveats=words.caveats(data),
        numbers=words.tiles(data),
        version=str(data.attrs.get("thalweg", "")),
    )


def spectrum_sections(data: xr.Dataset) -> list[str]:
    """Return the sections that a run's page shows of a spectrum."""
    told = [*spectrum_words.headline(data), *spectrum_words.caveats(data)]
    first, *rest = [section for section in _sections(data, f" at {spectrum_facts.place(data)}", told) if section] or [
        ""
    ]
    return [first, *rest]


def _sections(data: xr.Dataset, where: str, told: Sequence[str] = ()) -> list[str]:
    words, figures = spectrum_words, spectrum_figures
    finding = " ".join([*told, words.density_finding(data)])
    return [
        figure_section(
            "spectrum",
            f"Spectrum{where}",
            DENSITY if "density" in data else "Eigenvalues found singly, with their residuals.",
            finding,
            figures.density_figure(data),
            against="the eigenvalue",
        ),
        figure_section(
            "layers",
            f"Layers{where}",
            LAYERS,
            "" if told else words.layer_finding(data),
            figures.layer_figure(data),
            against="the curvature",
            more=_layer_table(data),
        ),
    ]


def _under(data: xr.Dataset) -> list[str]:
    facts = data.attrs
    step = facts.get("step")
    size, samples = float(facts.get("dimension", 0)), float(facts.get("samples", 0))
    return [
        spectrum_facts.operator_name(data),
        f"step {int(step):,}" if step is not None else "",
        str(facts.get("model", "")),
        f"{size:,.0f} parameters",
        f"{samples:,.0f} samples",
        str(facts.get("optimizer", "")),
    ]


def _layer_table(data: xr.Dataset) -> str:
    if "layer_trace" not in data:
        return ""
    found = spectrum_facts.shares(data)
    rows = []
    for i, name in enumerate(data["layer"].to_numpy()):
        trace, error = (float(data[key][i]) for key in ("layer_trace", "layer_trace_standard_error"))
        top, residual = (float(data[key][i]) for key in ("layer_eigenvalue", "layer_residual"))
        part = share_error(float(found[0][i]), float(found[1][i])) if found is not None else ""
        size = f"{float(data['layer_parameters'][i]):,.0f}"
        rows.append((str(name), size, number(top), number(residual), with_error(trace, error), part))
    head = ("layer", "parameters", "largest eigenvalue", "residual", "trace ± standard error", "share of the trace")
    return table(head, rows)


def _eigenvalue_table(data: xr.Dataset) -> str:
    if "eigenvalues" not in data:
        return ""
    limit = None
    if data.attrs.get("comparable") == "yes" and "stability_threshold" in data:
        limit = float(data["stability_threshold"])
    rows = []
    for value, residual, end in zip(
        data["eigenvalues"].to_numpy(), data["eigen_residuals"].to_numpy(), data["eigen_end"].to_numpy()
    ):
        row = ["largest" if end > 0 else "smallest", number(float(value)), number(float(residual))]
        part = f"{value / limit:.4f}" if limit and end > 0 else ""
        rows.append((*row, part) if limit else tuple(row))
    head = ("end", "eigenvalue", "residual", *(("of the threshold",) if limit else ()))
    told = "An eigenvalue lies within the residual of each value, up to rounding; usually it is far closer."
    return section("eigenvalues", "Eigenvalues", told, table(head, rows))


def _cost(data: xr.Dataset) -> str:
    if "stage_products" not in data:
        return ""
    rows = [
        (str(name), f"{float(products):,.0f}", seconds(float(spent)), f"{float(gradients):,.0f}")
        for name, products, spent, gradients in zip(
            data["stage"].to_numpy(),
            data["stage_products"].to_numpy(),
            data["stage_seconds"].to_numpy(),
            data["stage_gradients"].to_numpy(),
        )
    ]
    head = ("stage", "products", "time", "in gradients")
    found, once = html.escape(spectrum_words.cost_finding(data)), seconds(float(data["gradient_seconds"]))
    return section("cost", "Cost", f"{found} One gradient took {once}.", table(head, rows))
