"""Alice: a quasi-Newton step per coordinate from curvature that three gradients show, kinks included.

Duersch, Catanach, Safonov and Wendt, "Curvature in the Looking-Glass", arXiv 2411.16914; built from the published
program's behaviour. docs/alice.md lists where this differs from it, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.errors import InvalidInput, explain
from thalweg.optim.alice_advance import advance_groups, restore_precision, without_points
from thalweg.optim.alice_layout import local
from thalweg.optim.alice_points import Point, RandomState, plan, statistics_kept
from thalweg.optim.alice_report import AliceReport, report_on
from thalweg.optim.alice_settings import (
    Coefficients,
    check,
    check_gradient,
    check_parameter,
    coefficients,
    period,
    warm_steps,
)
from thalweg.optim.alice_state import Held, Signs, prepare
from thalweg.optim.alice_trust import begin, bounded, check_whole


class Alice(Optimizer):
    """Minimise, per coordinate, ``-|g| d + h d^2/2 + c rho^(1/2) d^(3/2)`` over the length ``d`` of a step.

    ``g`` is a running average of the gradient at the look-ahead point ``nu``; ``h`` and ``rho`` (the glass density:
    variance of the gradient per unit of length) come from two further gradients at ``nu +- sigma z``, ``z`` being
    random signs, on every ``quick_steps + 1``-th batch. The step's length is bounded between multiples of Adam's
    (``limit_method="adam"``); then ``nu = mu + omega delta``, and the centre (the parameters) moves to
    ``mu + phi delta``.

    The closure is torch's ordinary one and is called once or three times, on the same batch. Loops that cannot hand one
    over take the points themselves::

        for point in optimizer.points():
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.observe(point)
        optimizer.step()

    Args:
        params: Parameters, named parameters or groups; every setting below may differ by group.
        lr: Scale of the bounds and, unless ``sigma`` is given, length of the probe (in units of the parameters). A
            tensor is allowed; groups get one of their own.
        betas: For the averages of the gradient and its square; curvature's is ``1 - (quick_steps+1)(1 - beta2)``.
        eps: Added to denominators.
        w1: Coupled L1 penalty.
        w2: Coupled L2 penalty (into gradient and curvature).
        phi: Fraction of a step that the centre takes; None: ``1 - beta1``; "coupled": ``(1 - beta1) omega``.
        omega: How far the look-ahead point lies, in steps.
        limit_method: Bounds in units of "adam": ``|g|/(s^(1/2) + eps)``, "sgdm": ``|g|``, "fixed": 1.
        lr_min: Lower bound.
        lr_max: Upper bound; None: twice the group's lr, or 200 times with ``trust``.
        scale_bounds_with_lr: Whether the bounds keep their ratio to lr when that changes.
        hess_comp: Curvature "abs": mean of ``|h|``, "rms", "zero": none; beyond the paper "hutchinson": ``|mean z h|``,
            and "rms_deleaked": rms less what glass adds to it.
        grad_glass: Whether the glass term is used.
        quick_steps: Batches with one gradient between two with three.
        sigma: Length of the probe; None: lr.
        sigma_floor: Least length of the probe; a learning rate of 0 is probed with it.
        sample_every: Instead of ``quick_steps + 1``.
        weight_decay: Decoupled: the centre shrinks by ``lr * weight_decay`` a step.
        glass_bound: "gaussian" (3/(4 pi)) or "jensen" (3/8, no assumption on the distribution of the jumps).
        trust: Whether the upper bound is set by how well the model foretold the loss change of the last steps: it
            starts at twice the lr, and opens up to ``lr_max`` or closes. See `alice_trust`.
        count_samples: Whether the averages of curvature count samples rather than batches while they warm up.
        move: False only measures: the averages are kept, nothing moves.
        maximize: Ascend.
        foreach: Whole lists of tensors per operation; None: where there is a CUDA device. On the CPU the other way,
            block by block, is the faster.
        capturable: The step is a tensor on the parameter's device and nothing waits for it.
        compiled: One kernel by torch.compile for a whole step: the fastest way, after a minute's compilation.
        differentiable: Not offered.
        seed: Of the signs.
        model: Whose buffers the two probes must not change; None: running statistics of the normalisation layers that
            the evaluations call.
        signs: ``signs(parameter, step, index)`` instead of the generator: plus and minus ones for step 1, 2, ... of the
            parameter at position ``index``.

    Raises:
        InvalidInput: A ``ValueError``: a setting is out of range, a parameter complex, or a gradient sparse.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Alice([w], lr=0.3, quick_steps=0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (w ** 2).sum()
        ...     loss.backward()
        ...     return loss
        >>> losses = [optimizer.step(closure).item() for _ in range(200)]
        >>> losses[0], losses[-1] < 0.1
        (5.0, True)
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        w1: float = 0.0,
        w2: float = 0.0,
        phi: float | str | None = None,
        omega: float = 1.0,
        limit_method: str = "adam",
        lr_min: float = 0.0,
        lr_max: float | None = None,
        scale_bounds_with_lr: bool = True,
        hess_comp: str = "abs",
        grad_glass: bool = True,
        quick_steps: int = 3,
        sigma: float | None = None,
        sigma_floor: float = 1e-8,
        sample_every: int | None = None,
        weight_decay: float = 0.0,
        glass_bound: str = "gaussian",
        trust: bool = False,
        count_samples: bool = False,
        move: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        compiled: bool = False,
        differentiable: bool = False,
        seed: int = 0,
        model: nn.Module | None = None,
        signs: Signs | None = None,
    ) -> None:
        given = dict(locals())
        defaults = {k: v for k, v in given.items() if k not in ("self", "params", "model", "signs", "__class__")}
        self.model, self.signs = model, signs
        self._batch: dict[Tensor, Held] = {}
        self._spare: dict[Tensor, dict[str, Tensor]] = {}
        self._observed: Point | None = None
        self._due = -1
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickled or deep-copied optimizer, whose batch in progress is not kept."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("trust", False)
        self.model, self.signs = self.__dict__.get("model"), self.__dict__.get("signs")
        self._batch, self._spare, self._observed, self._due = {}, {}, None, -1

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with bounds that follow from its own learning rate.

        Args:
            param_group: As for any optimizer.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                check_parameter(parameter)
                if group["trust"]:
                    check_whole(parameter)
            check(group)
            if group["trust"]:
                begin(group)
        except InvalidInput:
            self.param_groups.pop()
            raise
        if isinstance(group["lr"], Tensor) and any(group["lr"] is other["lr"] for other in self.param_groups[:-1]):
            group["lr"] = group["lr"].clone()

    def points(self, sample: bool | None = None) -> Generator[Point, None, None]:
        """Visit the points of one batch: at each the parameters are in place for one forward and backward pass.

        All evaluations must use the same batch. They are given the same random state (dropout), and only the last
        one's changes of running statistics stay. Afterwards, also after an exception or ``break``, the parameters are
        at the centre again.

        Args:
            sample: Whether to take the two probes; None: as the counters say. The choice is made on the host, so that
                each kind of batch can be captured as a graph of its own.

        Yields:
            The points in order; pass each to `observe` when its gradients are there.

        Raises:
            InvalidInput: A point was not observed.
        """
        self._drop()
        due = [self._sampling(group) if sample is None else sample for group in self.param_groups]
        self._hold(due)
        try:
            points = plan(any(due))
            shared = len(points) > 1
            random = RandomState(p.device for p in self._batch) if shared else None
            for point in points:
                with ExitStack() as stack:
                    if point.number and random is not None:
                        random.restore()
                    if point.perturbed:
                        stack.enter_context(statistics_kept(self.model))
                    self._place(point)
                    yield point
                if self._observed != point:
                    self._due = -1
                    raise InvalidInput(
                        explain("A point was not observed", "its gradients are lost", "Call observe(point) in the loop")
                    )
            self._due = len(points)
        finally:
            self._restore()

    @torch.no_grad()
    def observe(self, point: Point, *, scale: float | Tensor | None = None) -> None:
        """Take the gradients of one point, which lie in ``.grad``.

        The probes' are taken as they are now. Those of the last point are read again by `step`, so that they may be
        clipped or unscaled until then: the averages of the gradient see that, curvature does not.

        Args:
            point: The point that `points` yielded.
            scale: What the gradients are multiplied by: ``GradScaler.get_scale()``. Where a probe overflowed, the last
                point's gradients are made NaN, so that ``scaler.step`` passes the batch over.
        """
        self._observed = point
        for held in self._batch.values():
            gradient = held.parameter.grad
            if gradient is not None:
                check_gradient(gradient)
            held.observe(point.sign, scale, self.signs)
            if point.last and scale is not None and held.second is not None and gradient is not None:
                # 0 times a finite number changes nothing, 0 times infinity is NaN.
                local(gradient).add_((held.second * 0).to(gradient.dtype))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate a closure at this batch's points if one is given, and step by what was observed.

        Args:
            closure: Clears the gradients, computes the loss, calls ``backward`` and returns the loss.

        Returns:
            The loss at the look-ahead point, before the step; None without a closure. Without a closure and without
            observed points nothing moves; state is created.
        """
        loss = None
        if closure is not None:
            with closing(self.points()) as points:
                for point in points:
                    with torch.enable_grad():
                        loss = closure()
                    self.observe(point)
        if self._due < 0:
            without_points(self)
            return loss
        try:
            advance_groups(self, self._batch)
        finally:
            self._drop()
        return loss

    def report(self) -> AliceReport:
        """Say, by group, where steps are bounded and what curvature they go by.

        Returns:
            Shares of coordinates at the bounds, means of density and curvature, and the predicted decrease, for the
            step that the present averages give at the present settings.
        """
        return report_on(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, keeping the float32 averages of half-precision parameters, which torch would cast to half.

        Args:
            state_dict: From `state_dict`.
        """
        final: dict[str, Any] = {}
        # Registered last, so that it sees what the user's own hooks have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(lambda _, given: final.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        restore_precision(self, final)
        self._drop()

    def coefficients_of(self, group: dict[str, Any], state: dict[str, Any], ahead: int = 1) -> Coefficients:
        """Return the numbers of a parameter's step ``ahead`` of those it has taken."""
        step = state["step"]
        count: float | Tensor = step + ahead if group["capturable"] else step.item() + ahead
        samples = state["samples"] + ahead if group["count_samples"] else None
        k = coefficients(group, count, samples)
        return bounded(k, group) if group["trust"] else k

    def _sampling(self, group: dict[str, Any]) -> bool:
        """Whether curvature is due: while the group, or one of its parameters, warms up, and every so many batches."""
        warm = warm_steps(float(group["betas"][0]))
        if group["batches"] + 1 <= warm or (group["batches"] + 1) % period(group) == 0:
            return True
        if group["capturable"]:
            return False
        return any(p in self.state and self.state[p]["step"].item() < warm for p in group["params"])

    @torch.no_grad()
    def _hold(self, due: list[bool]) -> None:
        index = 0
        for group, sampling in zip(self.param_groups, due):
            for parameter in group["params"]:
                if parameter.requires_grad:
                    state = self.state.get(parameter, {})
                    if state:
                        prepare(parameter, group, state)
                    spare = self._spare.setdefault(parameter, {})
                    self._batch[parameter] = Held(parameter, group, state, index, spare, sampling=sampling)
                index += 1

    @torch.no_grad()
    def _place(self, point: Point) -> None:
        for held in self._batch.values():
            sign = point.sign if held.sampling else 0
            sigma = held.group["sigma"] if held.group["sigma"] is not None else held.group["lr"]
            floor = held.group["sigma_floor"]
            if isinstance(sigma, Tensor) and not held.group["capturable"]:
                sigma = sigma.item()
            sigma = sigma.clamp_min(floor) if isinstance(sigma, Tensor) else max(sigma, floor)
            held.move(sign, sigma, self.signs)

    @torch.no_grad()
    def _restore(self) -> None:
        for held in self._batch.values():
            held.restore()

    def _drop(self) -> None:
        self._batch, self._observed, self._due = {}, None, -1
