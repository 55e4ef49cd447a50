r"""Cross-entropy of a linear head, token by token, with both derivatives written out in chunks.

With hidden states ``h_i``, logits ``z_i = W h_i + b``, probabilities ``p_i = softmax(z_i)`` and ``e_i`` the one-hot
target, the loss of a token is ``l_i = logsumexp(z_i) - e_i' z_i`` and, for weights ``g_i`` from above,

    first    q_i = g_i (p_i - e_i):                dL/dh_i = W' q_i     dL/dW = sum_i q_i h_i'   dL/db = sum_i q_i

A direction ``(u, U, c)`` in ``(h, W, b)`` moves the logits by ``t_i = W u_i + U h_i + c``. The product of the
Hessian with it, which is also what backpropagation through the first derivative gives, is

    second   r_i = g_i (p_i * t_i - p_i (p_i' t_i)):
             h: W' r_i + U' q_i      W: sum_i r_i h_i' + q_i u_i'      b: sum_i r_i

The terms with ``q`` are the curvature of ``z`` itself, which is bilinear; without them this is the Gauss-Newton
product. Nothing of the size of the vocabulary is kept: each function makes the logits of one chunk of tokens anew,
and holds at most two blocks of chunk x V numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple["Tensor | None", "Tensor | None", "Tensor | None"]
"""What belongs to hidden states, weight and bias; None where nothing is asked or given."""

BLOCK = 1 << 23
"""Numbers in one chunk x V block where no chunk is given: 32 MiB in float32."""


def default_chunk(vocabulary: int) -> int:
    """Return the number of tokens whose logits are one block of `BLOCK` numbers."""
    return max(1, BLOCK // max(vocabulary, 1))


@dataclass(frozen=True)
class LinearHead:
    """The head at a point.

    Attributes:
        hidden: ``h``, shape ``(N, d)``.
        weight: ``W``, shape ``(V, d)``.
        bias: ``b``, shape ``(V,)``, or None.
        target: Class of each token, int64, shape ``(N,)``; none is ignored.
        chunk: Tokens at a time.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    chunk: int

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return ``l`` and ``logsumexp(z)``, both of shape ``(N,)``."""
        losses, normaliser = self.hidden.new_empty(len(self.hidden)), self.hidden.new_empty(len(self.hidden))
        for part in self._chunks():
            losses[part], normaliser[part] = self._losses(part)
        return losses, normaliser

    def gradient(self, normaliser: Tensor, g: Tensor, needs: tuple[bool, bool, bool]) -> Triple:
        """Return the derivatives of ``sum_i g_i l_i`` by ``h``, ``W`` and ``b``, where ``needs`` asks for them."""
        out = self._buffers(needs)
        for part in self._chunks():
            self._pull(out, part, self._errors(self._probabilities(part, normaliser), part, g))
        return out

    def rates(self, normaliser: Tensor, direction: Triple) -> Tensor:
        """Return ``(p_i - e_i)' t_i``, the derivative of each ``l_i`` along ``direction``, shape ``(N,)``."""
        out = self.hidden.new_empty(len(self.hidden))
        for part in self._chunks():
            out[part] = self._rates(part, self._moved(part, direction), self._probabilities(part, normaliser))[0]
        return out

    def product(
        self,
        normaliser: Tensor,
        g: Tensor,
        direction: Triple,
        needs: tuple[bool, bool, bool],
        *,
        bilinear: bool = True,
        rates: Tensor | None = None,
    ) -> Triple:
        """Return the Hessian of ``sum_i g_i l_i`` times ``direction``; without ``bilinear`` its Gauss-Newton part.

        Args:
            normaliser: What `losses` gave, shape ``(N,)``.
            g: Weight of each token, shape ``(N,)``.
            direction: What belongs to ``h``, ``W`` and ``b``; None is zero.
            needs: Which of the three results are wanted.
            bilinear: Whether to add the curvature of the logits.
            rates: Filled with what `rates` would give, if wanted.
        """
        out = self._buffers(needs)
        for part in self._chunks():
            found = self._add_product(out, part, normaliser, g, direction, bilinear)
            if rates is not None:
                rates[part] = found
        return out

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden), self.chunk):
            yield slice(start, min(start + self.chunk, len(self.hidden)))

    # One method a chunk: a block that a loop's variable still held would be the third one of the next chunk.

    def _losses(self, part: slice) -> tuple[Tensor, Tensor]:
        block = self._logits(part)
        picked = block.gather(1, self.target[part, None])[:, 0]
        top = block.amax(1)
        normaliser = block.sub_(top[:, None]).exp_().sum(1).log_().add_(top)
        return normaliser - picked, normaliser

    def _rates(self, part: slice, moved: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(p - e)' t`` and ``p' t``."""
        mean = _rowwise(probabilities, moved)
        return mean - moved.gather(1, self.target[part, None])[:, 0], mean

    def _add_product(
        self, out: Triple, part: slice, normaliser: Tensor, g: Tensor, direction: Triple, bilinear: bool
    ) -> Tensor:
        moved, probabilities = self._moved(part, direction), self._probabilities(part, normaliser)
        rates, mean = self._rates(part, moved, probabilities)
        self._pull(out, part, moved.sub_(mean[:, None]).mul_(probabilities).mul_(g[part, None]))
        u, weight, _ = direction
        if bilinear:
            errors = self._errors(probabilities, part, g)
            if out[0] is not None and weight is not None:
                out[0][part].addmm_(errors, weight)
            if out[1] is not None and u is not None:
                out[1].addmm_(errors.T, u[part])
        return rates

    def _logits(self, part: slice) -> Tensor:
        if self.bias is None:
            return self.hidden[part] @ self.weight.T
        return torch.addmm(self.bias, self.hidden[part], self.weight.T)

    def _probabilities(self, part: slice, normaliser: Tensor) -> Tensor:
        return self._logits(part).sub_(normaliser[part, None]).exp_()

    def _errors(self, probabilities: Tensor, part: slice, g: Tensor) -> Tensor:
        """``q = g (p - e)``, written over ``p``."""
        target = self.target[part, None]
        return probabilities.scatter_add_(1, target, -torch.ones_like(target, dtype=g.dtype)).mul_(g[part, None])

    def _moved(self, part: slice, direction: Triple) -> Tensor:
        """``t = W u + U h + c``."""
        u, weight, bias = direction
        moved = self.hidden.new_zeros(part.stop - part.start, len(self.weight))
        if u is not None:
            moved.addmm_(u[part], self.weight.T)
        if weight is not None:
            moved.addmm_(self.hidden[part], weight.T)
        return moved if bias is None else moved.add_(bias)

    def _buffers(self, needs: tuple[bool, bool, bool]) -> Triple:
        shapes = (self.hidden.shape, self.weight.shape, self.weight.shape[:1])
        hidden, weight, bias = (self.hidden.new_zeros(s) if need else None for s, need in zip(shapes, needs))
        return hidden, weight, bias

    def _pull(self, out: Triple, part: slice, block: Tensor) -> None:
        """Add what a block in the space of logits is worth in ``h``, ``W`` and ``b``."""
        hidden, weight, bias = out
        if hidden is not None:
            hidden[part].addmm_(block, self.weight)
        if weight is not None:
            weight.addmm_(block.T, self.hidden[part])
        if bias is not None:
            bias.add_(block.sum(0))


def _rowwise(a: Tensor, b: Tensor) -> Tensor:
    """Row by row inner products, without a third block."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).reshape(-1)
