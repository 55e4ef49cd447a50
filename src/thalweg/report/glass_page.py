"""The page of a look at glass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from thalweg.errors import ThalwegError
from thalweg.report import glass_figures as figures
from thalweg.report.frame import beside, framed, plain, provenance_section, write_page
from thalweg.report.numbers import count, fixed, number, seconds, share, with_error
from thalweg.report.shell import figure_section, table

FACTS = (
    ("source", "source"),
    ("optimizer", "update rule"),
    ("model", "model"),
    ("dimension", "parameters"),
    ("samples", "samples"),
    ("batches", "mini-batches"),
    ("batch_size", "samples in each"),
    ("sigma", "probe, in weights"),
    ("gradients", "gradients of a mini-batch"),
    ("products", "Hessian products of a mini-batch"),
    ("dtype", "dtype"),
    ("device", "device"),
    ("seed", "seed"),
    ("created", "created"),
    ("thalweg", "thalweg"),
    ("torch", "torch"),
    ("schema", "schema of the file"),
)
"""What the table of provenance shows, and under which name."""

POWERS = (
    "How the mean square change of a layer's gradient grows with the distance that all weights move. Jumps at ReLU "
    "kinks give 1 to first and second differences alike; where the gradient is continuous, first differences show its "
    "Hessian, 2, and second differences its corners, 3, or, where it is smooth, 4. Bars are two standard errors."
)
DENSITY = (
    "Mean square of the gradient's random change per unit of distance, averaged over the weights of each layer, with "
    "one standard error. It belongs to this size of mini-batch: twice the samples, half the density. Where the powers "
    "above show no jumps there is none: open circles are what the estimate leaves of smooth curvature at this probe."
)
HISTORY = "The same density at each step that was looked at."
CHANGE = (
    "How far the loss of one mini-batch is from what its gradient and Hessian predict along the update, mean absolute "
    "value over batches with one standard error, beside the glass predicted from the gradients' variation along the "
    "same line, alone and with the mean effect of the kinks, which finite differences see and Hessian products do not. "
    "Below the dashed curve the Hessian part is the larger one."
)


def write_glass_page(
    path: str | Path, out: str | Path | None = None, history: Sequence[str | Path] | None = None
) -> Path:
    """Write the page of a look at glass.

    Args:
        path: The netCDF file that ``thalweg glass`` wrote.
        out: Where to write; default beside it, ending in ``.html``.
        history: Files of other steps of the same run; default all beside ``path`` that are named ``glass-STEP.nc``.

    Returns:
        The path of the page, one file that opens without a network.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
        StorageError: The page cannot be written; nothing is left behind.
    """
    from thalweg.runs.analyses import read_analysis

    source = Path(path)
    data = read_analysis(source, "glass")
    return write_page(beside(source, out), render_glass(data, _history(data, source, history)))


def render_glass(data: xr.Dataset, history: Sequence[xr.Dataset] = ()) -> str:
    """Return the page as text.

    Args:
        data: A look at glass.
        history: Looks at several steps of one run, by step.
    """
    step, power, change = "the length of the step", _power_table(data), _change_table(data)
    parts = (
        ("change", "Loss change along the update", CHANGE, figures.change_figure(data), step, change),
        ("exponents", "Powers of gradient variation", POWERS, figures.exponent_figure(data), "the power", power),
        ("density", "Glass density by layer", DENSITY, figures.density_figure(data), "the density", _layer_table(data)),
    )
    return framed(
        "Glass",
        str(data.attrs.get("name", "glass")),
        _under(data),
        [
            *(
                figure_section(key, title, see, "", figure, against=against, more=more)
                for key, title, see, figure, against, more in parts
            ),
            figure_section("history", "Glass density over training", HISTORY, "", figures.history_figure(history)),
            provenance_section(data.attrs, FACTS, _plain),
        ],
        headline=str(data.attrs.get("text", "")),
        verdicts=_verdicts(data),
        caveats=[*(line for line in str(data.attrs.get("notes", "")).splitlines() if line), *_caveats(data)],
        numbers=_tiles(data),
        version=str(data.attrs.get("thalweg", "")),
    )


def _history(data: xr.Dataset, source: Path, files: Sequence[str | Path] | None) -> list[xr.Dataset]:
    """Read the other steps; what cannot be read, or has other layers, is left out."""
    from thalweg.runs.analyses import read_analysis

    if "step" not in data.attrs:
        return []
    found: dict[int, xr.Dataset] = {}
    for path in sorted(source.parent.glob("glass-*.nc")) if files is None else map(Path, files):
        try:
            other = read_analysis(path, "glass")
        except ThalwegError:
            continue
        same = list(other["layer"].to_numpy()) == list(data["layer"].to_numpy())
        comparable = other.attrs.get("batch_size") == data.attrs.get("batch_size")
        if same and comparable and "step" in other.attrs:
            found[int(other.attrs["step"])] = other
    return [found[step] for step in sorted(found)]


def _under(data: xr.Dataset) -> list[str]:
    facts = data.attrs
    step = facts.get("step")
    return [
        f"step {int(step):,}" if step is not None else "",
        str(facts.get("model", "")),
        f"{float(facts.get('dimension', 0)):,.0f} parameters",
        f"{count(int(facts.get('batches', 0)), 'mini-batch').replace('batchs', 'batches')}",
        str(facts.get("optimizer", "")),
    ]


def _verdicts(data: xr.Dataset) -> list[tuple[str, str]]:
    kinds = [str(kind) for kind in data["matters"].to_numpy()]
    words = {"glass": "accent", "Hessian": "plain", "both": "plain", "unsure": "warn", "neither": "warn"}
    names = {"glass": "glass matters", "Hessian": "the Hessian matters", "both": "both matter"}
    found = []
    for kind, style in words.items():
        if kind in kinds:
            times = kinds.count(kind)
            found.append((f"{names.get(kind, kind)} in {times} of {count(len(kinds), 'layer')}", style))
    return found


def _caveats(data: xr.Dataset) -> list[str]:
    notes = []
    if int(data.attrs.get("batches", 0)) < 8:
        notes.append(f"Only {int(data.attrs['batches'])} mini-batches: the standard errors are rough themselves.")
    if "path_power" in data and not _glassy(data):
        notes.append("Along the update glass does not show: its curve there is a remainder and no prediction.")
    return notes


def _glassy(data: xr.Dataset) -> bool:
    """Whether kinks show along the update; by the power alone in files that do not say."""
    told = data.attrs.get("glassy")
    return float(data["path_power"]) <= 2.5 if told is None else told == "yes"


def _tiles(data: xr.Dataset) -> list[tuple[str, str, str]]:
    rho = np.where(figures.glassy_layers(data), data["rho"].to_numpy(), 0.0)
    best = int(np.argmax(rho))
    error = number(float(data["rho_error"][best]))
    most = (number(float(rho[best])), f"± {error}, layer {data['layer'].to_numpy()[best]}")
    cells = [("Largest density", *(most if rho[best] > 0 else ("none", "no gradient jumps")))]
    if "deviation" in data:
        t = data["length"].to_numpy()
        at = int(np.argmin(np.abs(np.log(t))))
        size, glass = float(data["deviation"][at]), float(data["predicted_deviation"][at])
        cells.append(
            (
                "Deviation from the Hessian",
                number(size),
                f"of the loss, at {'the update' if t[at] == 1 else f'{t[at]:g} updates'}",
            )
        )
        if _glassy(data) and glass > 0:
            cells.append(("Share of what kinks predict", share(size / glass), f"{number(size)} of {number(glass)}"))
    worst = int(np.nanargmax(data["leakage"].to_numpy()))
    cells.append(
        (
            "Glass in finite differences",
            share(float(data["leakage"][worst])),
            f"± {share(float(data['leakage_error'][worst]))}, layer {data['layer'].to_numpy()[worst]}",
        )
    )
    cells.append(
        ("Gradients", f"{int(data.attrs.get('gradients', 0)):,}", seconds(float(data.attrs.get("seconds", 0))))
    )
    return cells


def _power_table(data: xr.Dataset) -> str:
    rows, jumps = [], figures.glassy_layers(data)
    for i, name in enumerate(data["layer"].to_numpy()):
        pairs = [(float(data[key][i]), float(data[f"{key}_error"][i])) for key in ("first_power", "second_power")]
        powers = [f"{fixed(v)} ± {fixed(e)}" if math.isfinite(v) else "below rounding" for v, e in pairs]
        label = str(data["label"].to_numpy()[i])
        word = "no jumps" if label == "unsure" and not jumps[i] else label
        rows.append((str(name), *powers, word, str(data["matters"].to_numpy()[i])))
    return table(("layer", "first differences", "second differences", "which says", "what matters"), rows)


def _layer_table(data: xr.Dataset) -> str:
    rows = []
    for i, name in enumerate(data["layer"].to_numpy()):
        value = {key: float(data[key][i]) for key in ("rho", "rho_error", "leakage", "leakage_error", "move")}
        crossover = float(data["effective_crossover"][i])
        rows.append(
            (
                str(name),
                f"{float(data['parameters'][i]):,.0f}",
                with_error(value["rho"], value["rho_error"]) if figures.glassy_layers(data)[i] else "none",
                f"{share(value['leakage'])} ± {share(value['leakage_error'])}",
                number(crossover) if crossover > 0 else "no glass",
                number(value["move"]),
            )
        )
    head = ("layer", "parameters", "density", "glass in finite differences", "glass outweighs up to", "move now")
    return table(head, rows)


def _change_table(data: xr.Dataset) -> str:
    if "deviation" not in data:
        return ""
    rows = []
    for i, t in enumerate(data["length"].to_numpy()):
        v = {key: float(data[key][i]) for key in data if data[key].dims == ("length",)}
        rows.append(
            (
                f"{t:g}",
                with_error(v["change"], v["change_error"]),
                number(v["linear"]),
                number(v["hessian_part"]),
                number(v["finite_part"]),
                with_error(v["deviation"], v["deviation_error"]),
                with_error(v["glass_part"], v["glass_part_error"]),
                number(v["predicted_deviation"]),
                number(v["bound"]),
            )
        )
    head = (
        "updates",
        "loss change",
        "linear part",
        "Hessian part",
        "by finite differences",
        "deviation",
        "glass predicts",
        "with mean effect",
        "bound",
    )
    return table(head, rows)


def _plain(value: object) -> str:
    return number(float(value)) if isinstance(value, (float, np.floating)) else plain(value)
