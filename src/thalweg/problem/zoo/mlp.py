"""The multilayer perceptron."""

from __future__ import annotations

from torch import nn

from thalweg.problem.zoo.layers import Activation, Parametrisation, activation, head, linear


class MLP(nn.Sequential):
    r"""``depth`` linear layers of equal ``width`` with an activation between each two; inputs are flattened.

    ``f(x) = W_d \phi(W_{d-1} \cdots \phi(W_1 x))``: ``depth`` counts weights, and ``depth - 1`` layers are hidden.

    Args:
        inputs: Entries of one sample.
        outputs: Outputs.
        depth: Weight layers, at least one.
        width: Hidden units.
        act: Activation.
        parametrisation: ``"standard"`` or ``"ntk"``.
        bias: Whether layers have one.
        output_scale: Factor on the output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        width: int,
        act: Activation = "tanh",
        parametrisation: Parametrisation = "standard",
        bias: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth - 1):
            layers += [linear(inputs, width, parametrisation, bias), activation(act)]
            inputs = width
        super().__init__(*layers, head(inputs, outputs, parametrisation, bias, output_scale))
