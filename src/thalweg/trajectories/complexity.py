"""How long, how bent and how rich a path is: lengths, angles, spectra, and its principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.kernels import Floats, Ints, Kernels, angle, angle_of_defect, cosines


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a positive semidefinite ``T x T`` matrix, and how many of them matter.

    Attributes:
        values: Eigenvalues, largest first; tiny negative ones are set to 0.
        entropy_rank: ``exp(-sum p log p)`` with ``p`` the eigenvalues over their sum.
        participation: ``1 / sum p^2``.
        rank95: Smallest number of eigenvalues with 95 % of the sum.
    """

    values: Floats
    entropy_rank: float
    participation: float
    rank95: int

    @property
    def shares(self) -> Floats:
        """``p``: each eigenvalue over the sum; NaN where the matrix is zero."""
        total = self.values.sum()
        return self.values / total if total > 0 else np.full_like(self.values, np.nan)


def spectrum(matrix: Floats) -> Spectrum:
    """Return eigenvalues and effective ranks of a Gram matrix; rows that are undefined (NaN) are left out.

    Args:
        matrix: Symmetric, shape ``(T, T)``.

    Example:
        >>> found = spectrum(np.diag([4.0, 4.0, 0.0]))
        >>> round(found.entropy_rank, 9), round(found.participation, 9), found.rank95
        (2.0, 2.0, 2)
    """
    known = np.isfinite(np.diag(matrix))
    kept = matrix[np.ix_(known, known)]
    values = np.clip(np.linalg.eigvalsh(kept)[::-1], 0.0, None) if known.any() else np.zeros(0)
    total = float(values.sum())
    if not total > 0:
        return Spectrum(values, float("nan"), float("nan"), 0)
    p = values / total
    positive = p[p > 0]
    return Spectrum(
        values,
        float(np.exp(-(positive * np.log(positive)).sum())),
        float(1 / (p**2).sum()),
        int(np.searchsorted(np.cumsum(p), 0.95 * (1 - 1e-12)) + 1),
    )


@dataclass(frozen=True)
class Principal:
    """Classical PCA of the checkpoints, from their inner products alone.

    Attributes:
        coordinates: Where each checkpoint lies along the components, shape ``(T, d)``, units of weights.
        explained: Part of the variance along each component, shape ``(d,)``.
        residual: Distance of each checkpoint from the plane of the first two components, shape ``(T,)``.
        distance: Distance of each checkpoint from the mean of all, shape ``(T,)``.
    """

    coordinates: Floats
    explained: Floats
    residual: Floats
    distance: Floats


def principal(path: Kernels, components: int = 10) -> Principal:
    """Return eigenvectors of ``H K H`` times the roots of its eigenvalues, ``H = I - 1 1^T / T``.

    Args:
        path: The path.
        components: How many, at most ``T - 1``.

    Returns:
        Coordinates with signs such that the last checkpoint lies at or above the first along each.

    Example:
        >>> line = Kernels.from_points(np.outer(np.arange(3.0), [3.0, 4.0]))
        >>> principal(line).coordinates[:, 0].round(6).tolist()
        [-5.0, 0.0, 5.0]
    """
    centred = _centred(path.relative_to(0))
    values, vectors = np.linalg.eigh(centred)
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    count = max(1, min(components, len(path) - 1))
    coordinates = vectors[:, :count] * np.sqrt(values[:count])
    coordinates = coordinates * np.where(coordinates[-1] < coordinates[0], -1.0, 1.0)
    total = float(values.sum())
    explained = values[:count] / total if total > 0 else np.full(count, np.nan)
    plane = vectors[:, :2] * np.sqrt(values[:2])
    size = np.maximum(np.diag(centred), 0.0)
    rest = np.sqrt(np.maximum(size - (plane**2).sum(axis=1), 0.0))
    return Principal(coordinates, explained, rest, np.sqrt(size))


@dataclass(frozen=True, repr=False)
class Complexity:
    """Lengths, angles and spectra of a path. Angles in degrees, lengths in units of weights.

    Attributes:
        steps: Step of each checkpoint, shape ``(T,)``.
        lags: Lags in checkpoints, shape ``(Q,)``.
        path_length: ``L = sum u_i``; a lower bound, which grows as checkpoints get denser.
        net: ``r_T = |theta_T - theta_1|``.
        straightness: ``r_T / L``, 1 for a straight line.
        displacement: ``r_T / n_1``.
        lengths: ``u_i = |U_i|``, shape ``(T-1,)``.
        norms: ``n_i = |theta_i|``, shape ``(T,)``.
        radii: ``r_i = |theta_i - theta_1|``, shape ``(T,)``.
        update_ratio: ``u_i / n_i``, shape ``(T-1,)``.
        tortuosity: Mean of (length over q increments) / (distance they cover), shape ``(Q,)``.
        turning: Turning angle at each lag and checkpoint, shape ``(Q, T)``; NaN where there is none.
        turning_cosine: Mean cosine of the turning angles, shape ``(Q,)``.
        apex_origin: ``angle(theta_i, theta_{i+q})``, shape ``(Q, T)``.
        apex_anchor: ``angle(theta_i - theta_a, theta_{i+q} - theta_a)``, shape ``(Q, T)``.
        radius_slope: Slope of ``log r_i`` against ``log(k_i - k_1)``: 1 ballistic, 1/2 diffusive.
        norm_slope: Slope of ``log n_i`` against ``log k_i``.
        spectra: Of ``kernel``, ``similarity``, ``relative`` map, ``centred`` kernel and ``updates``.
        principal: Principal components.
    """

    steps: Ints
    lags: Ints
    path_length: float
    net: float
    straightness: float
    displacement: float
    lengths: Floats
    norms: Floats
    radii: Floats
    update_ratio: Floats
    tortuosity: Floats
    turning: Floats
    turning_cosine: Floats
    apex_origin: Floats
    apex_anchor: Floats
    radius_slope: float
    norm_slope: float
    spectra: dict[str, Spectrum]
    principal: Principal

    def turning_summary(self, lag: int = 1) -> dict[str, float]:
        """Return mean, median, first and last decile of the turning angle at a lag, in degrees."""
        values = self.turning[self.row(lag)]
        values = values[np.isfinite(values)]
        if not len(values):
            return dict.fromkeys(("mean", "median", "decile_1", "decile_9"), float("nan"))
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        return {"mean": float(values.mean()), "median": float(middle), "decile_1": float(low), "decile_9": float(high)}

    def apex(self, lag: int = 1, at: str = "anchor") -> float:
        """Return the mean apex angle at a lag, in degrees, seen from the ``anchor`` or the ``origin``."""
        values = (self.apex_anchor if at == "anchor" else self.apex_origin)[self.row(lag)]
        return mean(values)

    def row(self, lag: int) -> int:
        """Return which row belongs to a lag.

        Raises:
            InvalidInput: The lag was not computed.
        """
        found = np.flatnonzero(self.lags == lag)
        if not len(found):
            raise InvalidInput(
                explain(f"Lag {lag}", f"computed are {self.lags.tolist()}", "Ask for it by lags= beforehand")
            )
        return int(found[0])

    def __repr__(self) -> str:
        turn, ranks = self.turning_summary() if 1 in self.lags else {}, self.spectra["centred"]
        lines = [
            f"Complexity of {len(self.steps)} checkpoints, steps {self.steps[0]:,} to {self.steps[-1]:,}",
            f"  length {self.path_length:.4g}, net {self.net:.4g}, straightness {self.straightness:.3f}, "
            f"r_T / n_1 {self.displacement:.3g}",
            f"  turning {turn.get('mean', float('nan')):.1f} deg, radius slope {self.radius_slope:.2f}, "
            f"PC1 {ranks.shares[0] if len(ranks.values) else float('nan'):.3f}, "
            f"effective rank {ranks.entropy_rank:.2f} (entropy), {ranks.participation:.2f} (participation), "
            f"{ranks.rank95} (95 %)",
        ]
        return "\n".join(lines)


def complexity(
    path: Kernels, *, anchor: int = 0, lags: Sequence[int] | None = None, components: int = 10
) -> Complexity:
    """Measure a path: everything that is a function of inner products between its checkpoints.

    Args:
        path: The path.
        anchor: Checkpoint that relative quantities start from.
        lags: In checkpoints, default powers of two up to a quarter of the path; those beyond the path are left out.
        components: Principal components kept.

    Returns:
        All measures; NaN where undefined, as the turning angle at a checkpoint where nothing moved.

    Raises:
        InvalidInput: A lag below one.

    Example:
        >>> square = Kernels.from_points(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]) + [10.0, 0.0])
        >>> found = complexity(square)
        >>> round(found.path_length, 9), round(found.net, 9), found.turning_summary()["mean"]
        (3.0, 1.0, 90.0)
    """
    count = len(path)
    chosen = _lags(count, lags)
    turning, cosine, tortuosity = np.full((len(chosen), count), np.nan), np.full(len(chosen), np.nan), []
    origin, anchored = np.full((len(chosen), count), np.nan), np.full((len(chosen), count), np.nan)
    inner = path.relative_to(anchor)
    travelled = np.concatenate([[0.0], np.cumsum(path.lengths)])
    for row, lag in enumerate(chosen):
        terms = path.turning_terms(lag)
        turning[row, lag : count - lag] = angle(*terms)
        cosine[row] = mean(cosine_of(*terms))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (travelled[lag:] - travelled[:-lag]) / path.chords(lag)
        tortuosity.append(mean(np.where(np.isfinite(ratio), ratio, np.nan)))
        here, there = np.arange(count - lag), np.arange(lag, count)
        origin[row, : count - lag] = angle_of_defect(path.defect[here, there])
        anchored[row, : count - lag] = angle(inner[here, there], np.diag(inner)[here], np.diag(inner)[there])
    length, net = float(path.lengths.sum()), float(path.radii[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(path.norms[:-1] > 0, path.lengths / path.norms[:-1], np.nan)
    first = float(path.norms[0])
    return Complexity(
        steps=path.steps,
        lags=np.array(chosen, dtype=np.int64),
        path_length=length,
        net=net,
        straightness=net / length if length > 0 else float("nan"),
        displacement=net / first if first > 0 else float("nan"),
        lengths=path.lengths,
        norms=path.norms,
        radii=path.radii,
        update_ratio=np.asarray(ratio, dtype=np.float64),
        tortuosity=np.array(tortuosity, dtype=np.float64),
        turning=turning,
        turning_cosine=cosine,
        apex_origin=origin,
        apex_anchor=anchored,
        radius_slope=log_slope(path.steps - path.steps[0], path.radii),
        norm_slope=log_slope(path.steps, path.norms),
        spectra={
            "kernel": spectrum(path.kernel),
            "similarity": spectrum(path.similarity),
            "relative": spectrum(cosines(inner, np.sqrt(np.maximum(np.diag(inner), 0.0)))),
            "centred": spectrum(_centred(inner)),
            "updates": spectrum(path.G),
        },
        principal=principal(path, components),
    )


def cosine_of(inner: Floats, first: Floats, second: Floats) -> Floats:
    """Return ``<a, b> / (|a| |b|)`` from squares, NaN where one is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(inner / np.sqrt(first * second), -1.0, 1.0)
    return np.asarray(np.where((first > 0) & (second > 0), found, np.nan), dtype=np.float64)


def log_slope(steps: Ints | Floats, values: Floats) -> float:
    """Return the least-squares slope of ``log v`` against ``log k`` where both are positive; NaN below two points.

    Example:
        >>> round(log_slope(np.array([0, 1, 4, 9]), np.array([0.0, 2.0, 4.0, 6.0])), 12)
        0.5
    """
    known = (np.asarray(steps) > 0) & (values > 0) & np.isfinite(values)
    if known.sum() < 2:
        return float("nan")
    x, y = np.log(np.asarray(steps, dtype=np.float64)[known]), np.log(values[known])
    x = x - x.mean()
    return float(x @ y / (x @ x)) if float(x @ x) > 0 else float("nan")


def mean(values: Floats) -> float:
    """Return the mean of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _centred(inner: Floats) -> Floats:
    middle = inner - inner.mean(axis=0) - inner.mean(axis=1)[:, None] + inner.mean()
    return np.asarray((middle + middle.T) / 2, dtype=np.float64)


def _lags(count: int, lags: Sequence[int] | None) -> list[int]:
    if lags is None:
        return [q for q in (2**i for i in range(20)) if q == 1 or q <= count // 4]
    if any(q < 1 for q in lags):
        raise InvalidInput(explain(f"Lags {list(lags)}", "a lag is at least one checkpoint", "Give positive lags"))
    return [q for q in sorted(set(lags)) if q < count]
