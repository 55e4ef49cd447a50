"""Leading eigenpairs followed along a run."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.operators.base import Operator
from thalweg.spectra.block import BlockResult, BlockSpace, solve_block
from thalweg.spectra.history import History
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs
from thalweg.spectra.results import Eigenpairs, Stop

_KEPT = ("last", "values", "guard")


@dataclass(frozen=True)
class TrackEvent:
    """A tracked eigenvalue that appeared, or that vanished from the leading ones.

    Attributes:
        update: Number of the update, from zero.
        kind: ``"birth"`` or ``"death"``.
        track: Identity of the eigenvector's track.
        value: Its eigenvalue at a birth, and the last one that was seen at a death.
    """

    update: int
    kind: str
    track: int
    value: float


class EigenTracker:
    r"""Follow the leading eigenpairs of an operator that changes a little from call to call.

    Each `update` starts from a prediction: the combination of the eigenvectors of past calls that reproduces the
    new weights from the past weights (see `thalweg.spectra.history`), so pass ``w``. One *guard* direction, the best
    known in the complement with some noise, costs one product a call and lets an eigenvalue that rises out of the
    bulk be noticed. The space is then expanded by the residuals of unconverged pairs until
    ``|A v - theta v| <= tol |theta_1|``. Every residual returned is explicit: it comes from products at this call.

    Args:
        k: How many pairs to follow at least.
        threshold: Follow every eigenvalue above ``threshold * limit``, where ``limit`` is given at each update
            (the stability limit, such as 2 / learning rate). None: exactly ``k``.
        grow: Whether the number may grow for that.
        max_k: Largest number of pairs; default 20.
        tol: Relative residual; default 1e-3.
        history: Calls that the prediction draws on; each keeps ``k + 1`` vectors of length P. 1 starts from the
            last vectors, and keeps least.
        seed: Seed of the random directions.

    Attributes:
        count: Pairs followed now. It never shrinks.
        tracks: For each returned pair, the identity of its track: the same number is the same eigenvector,
            however its rank changes.
        events: Births and deaths of tracks so far.

    Raises:
        InvalidInput: An argument is out of range.

    Example:
        >>> from thalweg.operators import from_dense
        >>> tracker = EigenTracker(k=1)
        >>> for top in (3.0, 3.1):
        ...     pairs = tracker.update(from_dense(torch.diag(torch.tensor([top, 1.0, 0.0], dtype=torch.float64))))
        >>> round(pairs.values.item(), 6), tracker.tracks
        (3.1, (0,))
    """

    def __init__(
        self,
        k: int = 1,
        *,
        threshold: float | None = None,
        grow: bool = True,
        max_k: int = 20,
        tol: float = 1e-3,
        history: int = 6,
        seed: int = 0,
    ) -> None:
        if k < 1 or max_k < k or not tol > 0 or (threshold is not None and not threshold > 0):
            raise InvalidInput(
                explain(
                    f"EigenTracker got k={k}, max_k={max_k}, tol={tol}, threshold={threshold}",
                    "it follows between k >= 1 and max_k >= k pairs, to a positive tolerance",
                    "Correct the argument that breaks this",
                )
            )
        self.count, self.threshold, self.grow, self.max_k, self.tol, self.seed = (
            k,
            threshold,
            grow,
            max_k,
            tol,
            seed,
        )
        self.tracks: tuple[int, ...] = ()
        self.events: list[TrackEvent] = []
        self._updates = 0
        self._next_track = 0
        self._history = History(history)
        self._last: Tensor | None = None
        self._values: Tensor | None = None
        self._guard: Tensor | None = None

    def update(
        self, operator: Operator, limit: float | None = None, *, w: Tensor | None = None, start: Tensor | None = None
    ) -> Eigenpairs:
        """Return the leading pairs of ``operator``.

        Args:
            operator: The operator now, same size as before.
            limit: The stability limit in the operator's units, for ``threshold``.
            w: The weights that the operator belongs to, shape ``(P,)``. Without them the prediction is a line
                through past calls, which costs more products.
            start: A direction to begin a first call with, shape ``(P,)``, such as the gradient. The call is then a
                glance: converged to ``tol``, but nothing has looked for an eigenvalue that both this and two random
                directions miss. Later calls ignore it.

        Returns:
            `Eigenpairs` with ``count`` pairs, values descending, vectors sign-aligned with the last call.

        Raises:
            NotConverged: Neither the warm start nor a cold Lanczos run reached ``tol``.
            NonFinite: A product is NaN or infinite.
        """
        first = operator.products
        count = min(self.count, operator.size)
        space = BlockSpace(operator, capacity=max(6 * (self.max_k if self.grow else count), 24))
        result = None
        if len(self._history):
            result = self._warm(space, count, w)
        elif start is not None:
            noise = [self._noise(operator, "glance", i) for i in range(2)]
            space.add(torch.stack([start.to(operator.device, operator.dtype), *noise]))
            result = solve_block(space, count, self.tol)
        if result is None or not result.converged:
            space, result = self._cold(operator, count, space)
        while self._wants_more(result, limit, operator.size):
            count += 1
            space.add(self._noise(operator, "grow", count)[None])
            result = solve_block(space, count, self.tol)
            if not result.converged:
                space, result = self._cold(operator, count, space)
        self.count = max(self.count, count)
        rows = self._match(result)
        self._remember(space, result, rows, w)
        self._updates += 1
        return Eigenpairs(
            values=result.values.to(operator.dtype),
            vectors=rows.T,
            residuals=result.residuals.to(operator.dtype),
            products=operator.products - first,
            stop=Stop.CONVERGED,
        )

    def __copy__(self) -> EigenTracker:
        """A tracker that goes on from here on its own; vectors are shared, as none is ever written into."""
        other = EigenTracker.__new__(EigenTracker)
        other.__dict__ = self.__dict__ | {"_history": copy.copy(self._history), "events": list(self.events)}
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next update depends on, as tensors: loading it resumes bit for bit."""
        state = {
            "counters": torch.tensor([self._updates, self._next_track, self.count], dtype=torch.int64),
            "tracks": torch.tensor(self.tracks, dtype=torch.int64),
        }
        for name in _KEPT:
            tensor = getattr(self, f"_{name}")
            if tensor is not None:
                state[name] = tensor.detach().clone()
        return state | {f"history.{name}": tensor for name, tensor in self._history.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state_dict` gave; events stay with the run's own record."""
        self._updates, self._next_track, self.count = (int(n) for n in state["counters"])
        self.tracks = tuple(int(n) for n in state["tracks"])
        for name in _KEPT:
            setattr(self, f"_{name}", state[name].clone() if name in state else None)
        self._history.load_state_dict(
            {name.removeprefix("history."): t for name, t in state.items() if name.startswith("history.")}
        )

    def _warm(self, space: BlockSpace, count: int, w: Tensor | None) -> BlockResult:
        operator = space.operator
        starts = [self._history.predict(w)]
        if self._guard is not None:
            starts.append((self._guard + 0.05 * self._noise(operator, "guard"))[None])
        space.add(torch.cat(starts).to(operator.device, operator.dtype))
        return solve_block(space, count, self.tol, max_rounds=30)

    def _cold(self, operator: Operator, count: int, space: BlockSpace) -> tuple[BlockSpace, BlockResult]:
        """Solve from a random start, keeping what the warm start had found only if Lanczos fails."""
        wanted = min(count + 1, operator.size)
        try:
            pairs = top_eigenpairs(operator, wanted, method=Lanczos(tol=self.tol / 4), seed=self._updates + self.seed)
        except NotConverged as error:
            raise NotConverged(
                explain(
                    f"At update {self._updates} the {count} leading pairs did not reach residual {self.tol:g}",
                    str(error),
                    "Loosen tol, follow fewer pairs, or use float64",
                ),
                error.result,
            ) from error
        fresh = BlockSpace(operator, space.capacity)
        fresh.add(pairs.vectors.T)
        result = solve_block(fresh, count, self.tol)
        return fresh, result

    def _wants_more(self, result: BlockResult, limit: float | None, size: int) -> bool:
        if self.threshold is None or limit is None or not self.grow:
            return False
        room = len(result.values) < min(self.max_k, size)
        return room and float(result.values[-1]) > self.threshold * limit

    def _noise(self, operator: Operator, *names: str | int) -> Tensor:
        stream = _rng.generator(self.seed, "tracker", self._updates, *names)
        drawn = torch.randn(operator.size, generator=stream, dtype=torch.float64)
        unit: Tensor = drawn / drawn.norm()
        return unit.to(operator.device, operator.dtype)

    def _remember(self, space: BlockSpace, result: BlockResult, rows: Tensor, w: Tensor | None) -> None:
        operator, count = space.operator, len(rows)
        images = space.image(result.coordinates)
        guard = self._noise(operator, "fresh guard")
        if space.size > count:
            # One step of power iteration for free: the image of the next Ritz vector is already there.
            image = space.image(space.ritz(count + 1)[1][:, count:])[0]
            image = image - rows.T @ (rows @ image)
            length = float(image.norm())
            guard = image / length if length > 0 else guard
        self._guard = guard
        self._last, self._values = rows, result.values
        self._history.append(w, _sharpened(result, images))

    def _match(self, result: BlockResult) -> Tensor:
        """Give each pair the track of the old vector it overlaps most, and align its sign with it."""
        rows = result.rows.clone()
        if self._last is None:
            self.tracks = tuple(self._birth(float(v)) for v in result.values)
            return rows
        old, names = self._last.to(rows), self.tracks
        overlap = (rows @ old.T).to("cpu", torch.float64)
        from scipy.optimize import linear_sum_assignment  # a quarter of a second, for those who follow something

        new_index, old_index = linear_sum_assignment(-overlap.abs().numpy())
        tracks: list[int | None] = [None] * len(rows)
        for i, j in zip(new_index.tolist(), old_index.tolist()):
            if abs(float(overlap[i, j])) > 0.5:
                tracks[i] = names[j]
                if float(overlap[i, j]) < 0:
                    rows[i].neg_()
        ended = dict(zip(names, [] if self._values is None else self._values.tolist()))
        for name in sorted(set(names) - set(tracks)):
            self.events.append(TrackEvent(self._updates, "death", name, ended[name]))
        self.tracks = tuple(self._birth(float(v)) if t is None else t for t, v in zip(tracks, result.values))
        return rows

    def _birth(self, value: float) -> int:
        track = self._next_track
        self._next_track += 1
        self.events.append(TrackEvent(self._updates, "birth", track, value))
        return track


def _sharpened(result: BlockResult, images: Tensor) -> Tensor:
    """Return ``A v / theta``, orthonormal rows: a step of power iteration from products that are already there.

    It shrinks what is left of the bulk in each vector, and so makes a better start for the next call. Pairs whose
    value is not large beside the bulk stay as they are.
    """
    values = result.values.to(result.rows)[:, None]
    large = values > 0.1 * values.abs().max()
    rows = torch.where(large, images / torch.where(large, values, torch.ones_like(values)), result.rows)
    q, r = torch.linalg.qr(rows.T)
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed.T
