"""The sufficient statistics of a trajectory: everything about its shape is a function of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.runs.analyses import read_analysis, scalar, variable, write_analysis
from thalweg.trajectories.products import Bad
from thalweg.trajectories.tiles import Layout

Group = str | Sequence[str] | Callable[[str], bool] | None
"""Tensors that are taken together: one by name, several, those for which a function says yes, or None for all."""


@dataclass(frozen=True, eq=False)
class Grams:
    """Inner products of the increments ``U_a = theta_{a+1} - theta_a`` of T checkpoints, tensor by tensor.

    ``G_g[a, b] = <U_a, U_b>``, ``c_g[a] = <theta_1, U_a>``, ``m_g = <theta_1, theta_1>``, restricted to tensor g. They
    add up over tensors. (Trajectory maps: Singh et al., arXiv 2403.07379; the increments keep the digits that inner
    products of the points themselves lose.)

    Attributes:
        steps: ``(T,)``, of the checkpoints.
        names: Of the tensors; a part of a fused tensor has its label in brackets behind the name.
        tensors: The stored tensor that each belongs to.
        parts: The label of each, empty for whole tensors.
        shapes: Shape of the stored tensor.
        dtypes: How it is stored, for example ``"float16"``.
        sizes: ``(tensors,)``, elements.
        G: ``(tensors, T-1, T-1)``, weight^2.
        c: ``(tensors, T-1)``, weight^2.
        m: ``(tensors,)``, weight^2.
        unchanged: ``(tensors, T-1)``, share of elements that are the same in two neighbouring checkpoints.
        quantum: ``(tensors,)``, relative size of the rounding to the stored type.
        sketch: Dimension of the random projection, if these are estimates; None if they are exact.
        bad: What was not finite and left out.
        schedule: Numbers known at the steps, by name, each ``(T,)``.
        fingerprints: Of the checkpoints' files, empty where unknown.
        bytes_read: Bytes read for this result.
        seconds: Time it took.
        flops: Floating-point operations of the products.
        reused: Tensors that came from finished work.
        stop: Why it stopped.
    """

    steps: np.ndarray
    names: tuple[str, ...]
    tensors: tuple[str, ...]
    parts: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    sizes: np.ndarray
    G: np.ndarray
    c: np.ndarray
    m: np.ndarray
    unchanged: np.ndarray
    quantum: np.ndarray
    sketch: int | None = None
    bad: tuple[Bad, ...] = ()
    schedule: Mapping[str, np.ndarray] = field(default_factory=dict)
    fingerprints: tuple[str, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0
    flops: int = 0
    reused: int = 0
    stop: str = "all tensors are done"

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        steps = f"steps {int(self.steps[0])} to {int(self.steps[-1])}" if len(self) else "no steps"
        rate = f" at {self.bytes_read / self.seconds / 2**30:.2g} GiB/s" if self.seconds > 0 else ""
        kind = f", estimates from {self.sketch} dimensions" if self.sketch else ""
        left_out = f", {sum(one.elements for one in self.bad)} values not finite left out" if self.bad else ""
        return (
            f"Grams of {len(self)} checkpoints ({steps}), {len(self.names)} tensors, {int(self.sizes.sum()):,} "
            f"parameters{kind}{left_out}; read {self.bytes_read / 2**30:.3g} GiB{rate}; {self.stop}"
        )

    def chosen(self, group: Group = None) -> np.ndarray:
        """Return the indices of the tensors in a group.

        Raises:
            InvalidInput: There is none of that name, or none at all.
        """
        if group is None:
            return np.arange(len(self.names))
        if callable(group):
            found = [i for i, name in enumerate(self.names) if group(name)]
        else:
            wanted = [group] if isinstance(group, str) else list(group)
            unknown = [name for name in wanted if name not in self.names]
            if unknown:
                raise InvalidInput(
                    explain(
                        f"There is no tensor {unknown[0]!r}",
                        f"there are {', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''}",
                        "Name one of these, or pass a function of the name",
                    )
                )
            found = [self.names.index(name) for name in dict.fromkeys(wanted)]
        if not found:
            raise InvalidInput(explain("The group is empty", "no tensor belongs to it", "Choose another"))
        return np.array(found)

    def increments(self, group: Group = None) -> np.ndarray:
        """Return ``<U_a, U_b>`` over a group, ``(T-1, T-1)``, weight^2."""
        return np.asarray(self.G[self.chosen(group)].sum(0))

    def first(self, group: Group = None) -> tuple[float, np.ndarray]:
        """Return ``(<theta_1, theta_1>, <theta_1, U_a>)`` over a group."""
        index = self.chosen(group)
        return float(self.m[index].sum()), np.asarray(self.c[index].sum(0))

    def relative(self, anchor: int = 0, group: Group = None) -> np.ndarray:
        """Return ``<theta_i - theta_a, theta_j - theta_a>`` for the anchor a, ``(T, T)``, weight^2.

        With ``R_ij`` the sums of G over a < i, b < j: ``R_ij - R_ia - R_aj + R_aa``, summed from the anchor outwards,
        so that neighbours of the anchor keep their digits.

        Args:
            anchor: Index of a checkpoint; negative ones count from the end.
            group: Which tensors.

        Raises:
            InvalidInput: There is no such checkpoint.
        """
        if not -len(self) <= anchor < len(self):
            raise InvalidInput(
                explain(f"The anchor is {anchor}", f"there are {len(self)} checkpoints", "Pass an index of one of them")
            )
        return _from_anchor(self.increments(group), anchor % len(self))

    def kernel(self, group: Group = None) -> np.ndarray:
        """Return ``K_ij = <theta_i, theta_j> = m + p_i + p_j + R_ij``, ``(T, T)``, weight^2; p sums c up."""
        m, c = self.first(group)
        p = np.concatenate([[0.0], np.cumsum(c)])
        return np.asarray(m + p[:, None] + p[None, :] + self.relative(0, group))

    @property
    def standard_error(self) -> np.ndarray | None:
        """Standard errors of the increments' inner products over all tensors, ``(T-1, T-1)``; None if exact."""
        return self.increment_errors()

    def increment_errors(self, group: Group = None) -> np.ndarray | None:
        """Return ``sqrt(sum_g (G_ab^2 + G_aa G_bb) / k)`` over a group, ``(T-1, T-1)``; None if exact.

        Tensors of at most k elements are projected without loss and add nothing.
        """
        if self.sketch is None:
            return None
        index = [i for i in self.chosen(group) if self.sizes[i] > self.sketch]
        norms = np.einsum("gaa->ga", self.G[index])
        variance = (self.G[index] ** 2 + norms[:, :, None] * norms[:, None, :]) / self.sketch
        return np.asarray(np.sqrt(variance.sum(0)))

    def grouped(self, groups: Mapping[str, Group]) -> Grams:
        """Return coarser Grams, one entry a group: everything adds up.

        ``unchanged`` is weighted by elements, ``quantum`` by squared norms.
        """
        index = [self.chosen(group) for group in groups.values()]
        weights = np.maximum(self.points(), 0)

        def quantum(i: np.ndarray) -> float:
            total = weights[i].sum()
            return float(np.sqrt((self.quantum[i] ** 2 * weights[i]).sum() / total if total else self.quantum[i].max()))

        sizes = np.array([self.sizes[i].sum() for i in index])
        return Grams(
            steps=self.steps,
            names=tuple(groups),
            tensors=tuple(groups),
            parts=("",) * len(index),
            shapes=tuple((int(size),) for size in sizes),
            dtypes=tuple("/".join(dict.fromkeys(self.dtypes[j] for j in i)) for i in index),
            sizes=sizes,
            G=np.array([self.G[i].sum(0) for i in index]),
            c=np.array([self.c[i].sum(0) for i in index]),
            m=np.array([self.m[i].sum() for i in index]),
            unchanged=np.array([self.sizes[i] @ self.unchanged[i] / self.sizes[i].sum() for i in index]),
            quantum=np.array([quantum(i) for i in index]),
            sketch=self.sketch,
            bad=self.bad,
            schedule=self.schedule,
            fingerprints=self.fingerprints,
            bytes_read=self.bytes_read,
            seconds=self.seconds,
            flops=self.flops,
            reused=self.reused,
            stop=self.stop,
        )

    def points(self) -> np.ndarray:
        """Return the mean of ``|theta_i|^2`` over the checkpoints, tensor by tensor, ``(tensors,)``."""
        return mean_squares(self.G, self.c, self.m)

    def plot(self, group: Group = None) -> go.Figure:
        """Draw the cosines between increments. Where one of them is zero there is no cosine, and no colour."""
        g = self.increments(group)
        length = np.sqrt(np.diag(g))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = g / np.outer(length, length)
        steps = [f"{int(a)} to {int(b)}" for a, b in zip(self.steps, self.steps[1:])]
        figure = go.Figure(go.Heatmap(z=cosines, x=steps, y=steps, zmin=-1, zmax=1, colorscale="RdBu"))
        figure.update_layout(title="Cosine between increments", xaxis_title="steps", yaxis_title="steps")
        return figure

    def save(self, path: str | Path) -> Path:
        """Write a netCDF file, whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        square, words = "weight^2", "inner product"
        data = xr.Dataset(
            {
                "step": variable("checkpoint", self.steps, "step", "step of the checkpoint"),
                "size": variable("tensor", self.sizes, "1", "elements"),
                "G": variable(("tensor", "increment", "other"), self.G, square, f"{words} of two increments"),
                "c": variable(("tensor", "increment"), self.c, square, f"{words} of the first point and an increment"),
                "m": variable("tensor", self.m, square, "squared norm of the first point"),
                "unchanged": variable(("tensor", "increment"), self.unchanged, "1", "share of unchanged elements"),
                "quantum": variable("tensor", self.quantum, "1", "relative rounding of the stored type"),
                "seconds": scalar(self.seconds, "s", "time taken"),
            }
        )
        for number, (name, values) in enumerate(self.schedule.items()):
            data[f"schedule_{number}"] = variable("checkpoint", values, "1", name)
        lists: dict[str, Any] = {key: getattr(self, key) for key in _LISTS}
        lists["bad"] = [[one.step, one.tensor, one.elements] for one in self.bad]
        lists["schedule"] = list(self.schedule)
        numbers = {key: getattr(self, key) for key in _NUMBERS}
        return write_analysis(Path(path), data, "gram", {"facts": json.dumps(lists | numbers)})


_LISTS = ("names", "tensors", "parts", "shapes", "dtypes", "fingerprints")
_NUMBERS = ("sketch", "bytes_read", "flops", "reused", "stop")


def open_grams(path: str | Path) -> Grams:
    """Read what `Grams.save` wrote.

    Raises:
        RunFolderError: The file is missing, damaged or of another kind.
        SchemaError: A newer thalweg wrote it.
    """
    data = read_analysis(Path(path), "gram")
    facts: dict[str, Any] = json.loads(data.attrs["facts"])
    numbers: dict[str, Any] = {key: data[key].values for key in ("G", "c", "m", "unchanged", "quantum")}
    facts |= {key: tuple(facts[key]) for key in _LISTS}
    facts["shapes"] = tuple(tuple(shape) for shape in facts["shapes"])
    facts["bad"] = tuple(Bad(*one) for one in facts["bad"])
    facts["schedule"] = {name: data[f"schedule_{i}"].values for i, name in enumerate(facts["schedule"])}
    numbers |= {key: data[name].values.astype(np.int64) for key, name in (("steps", "step"), ("sizes", "size"))}
    return Grams(**facts, **numbers, seconds=float(data["seconds"]))


def mean_squares(g: np.ndarray, c: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Return the mean of ``|theta_i|^2`` over the checkpoints for each tensor."""
    found = []
    for one, first, square in zip(g, c, m):
        p = np.concatenate([[0.0], np.cumsum(first)])
        found.append(float(np.mean(square + 2 * p + np.diag(_from_anchor(one, 0)))))
    return np.array(found)


def quantum(dtype: torch.dtype, mean_square: float) -> float:
    """Return the relative size of the rounding error of a tensor that was rounded to ``dtype``.

    With spacing ``eps 2^e`` at ``2^e <= |x| < 2^(e+1)`` and errors uniform within it, averaged over all scales:
    ``sqrt(E spacing^2 / 12 / E x^2) = eps sqrt(1 / (32 ln 2)) = 0.212 eps``. Below the smallest normal number the
    spacing is constant: ``spacing / sqrt(12) / rms``.

    Args:
        dtype: A floating-point type.
        mean_square: Mean square of an element.

    Example:
        >>> f"{quantum(torch.float16, 1e-4):.1e} {quantum(torch.bfloat16, 1e-4):.2e}"
        '2.1e-04 1.66e-03'
    """
    info = torch.finfo(dtype)
    relative = info.eps * math.sqrt(1 / (32 * math.log(2)))
    if mean_square <= 0:
        return relative
    return max(relative, info.tiny * info.eps / math.sqrt(12 * mean_square))


def facts(
    steps: Sequence[int], layouts: Sequence[Layout], g: np.ndarray, c: np.ndarray, m: np.ndarray
) -> dict[str, Any]:
    """Return the fields of `Grams` that follow from the tensors, their parts and the sums."""
    pairs = [(one, label) for one in layouts for label in one.labels]
    sizes = np.array([size for one in layouts for size in one.sizes()], dtype=np.int64)
    squares = mean_squares(g, c, m) / np.maximum(1, sizes)
    return {
        "steps": np.array(steps, dtype=np.int64),
        "names": tuple(name for one in layouts for name in one.units),
        "tensors": tuple(one.name for one, _ in pairs),
        "parts": tuple(label for _, label in pairs),
        "shapes": tuple(one.shape for one, _ in pairs),
        "dtypes": tuple(str(one.dtype).removeprefix("torch.") for one, _ in pairs),
        "sizes": sizes,
        "G": g,
        "c": c,
        "m": m,
        "quantum": np.array([quantum(one.dtype, square) for (one, _), square in zip(pairs, squares)]),
    }


def _from_anchor(g: np.ndarray, anchor: int) -> np.ndarray:
    """Sum increments from the anchor outwards, along both axes."""
    for axis in (0, 1):
        g = np.moveaxis(g, axis, 0)
        after = np.cumsum(g[anchor:], axis=0)
        before = -np.cumsum(g[:anchor][::-1], axis=0)[::-1]
        g = np.moveaxis(np.concatenate([before, np.zeros_like(g, shape=(1, *g.shape[1:])), after]), 0, axis)
    return g
