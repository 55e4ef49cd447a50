"""A plain convolutional network in the style of Myrtle's."""

from __future__ import annotations

import math

from torch import nn

from thalweg.problem.zoo.layers import Activation, Norm, Parametrisation, activation, channel_norm, conv, head


def pooled_blocks(blocks: int) -> set[int]:
    """Return after which of ``blocks`` blocks, counted from zero, the image is halved: three of them, evenly spread.

    Example:
        >>> pooled_blocks(4), pooled_blocks(6), pooled_blocks(9)
        ({1, 2, 3}, {1, 3, 5}, {8, 2, 5})
    """
    return {math.ceil(third * blocks / 3) - 1 for third in (1, 2, 3)} if blocks else set()


class CNN(nn.Sequential):
    """``depth - 1`` 3x3 convolutions of equal width, 2x2 average pools between them, then a linear layer.

    Three pools are spread over the blocks and two follow, as long as the image is at least two pixels wide; a mean
    over what is left ends them. Images of 32 x 32 and 28 x 28 so get the network of Kalra & Barkeshli (2023,
    arXiv 2302.12250) at depths 5, 7 and 10, and 8 x 8 digits one with three pools.

    Args:
        shape: Channels, height and width of an image.
        outputs: Outputs.
        depth: Weight layers.
        width: Channels of every block.
        act: Activation.
        parametrisation: ``"standard"`` or ``"ntk"``.
        norm: ``"batch"``, ``"group"`` or ``"none"``, between convolution and activation.
        bias: Whether layers have one.
        output_scale: Factor on the output.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        depth: int,
        width: int,
        act: Activation = "relu",
        parametrisation: Parametrisation = "standard",
        norm: Norm = "none",
        bias: bool = False,
        output_scale: float = 1.0,
    ) -> None:
        channels, side = shape[0], min(shape[1:])
        after = pooled_blocks(depth - 1)
        layers: list[nn.Module] = []
        for index in range(depth - 1):
            layers += [conv(channels, width, 3, parametrisation, bias=bias), channel_norm(norm, width), activation(act)]
            channels = width
            if index in after and side >= 2:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        for _ in range(2):
            if side >= 2:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(channels, outputs, parametrisation, bias, output_scale)]
        super().__init__(*layers)
