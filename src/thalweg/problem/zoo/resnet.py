"""Residual networks of any depth from 8 to 101."""

from __future__ import annotations

from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.problem.zoo.layers import (
    Activation,
    Conv2d,
    Norm,
    Parametrisation,
    activation,
    channel_norm,
    conv,
    gain_of,
    head,
)


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with a bottleneck."""

    def __init__(
        self,
        fan_in: int,
        width: int,
        stride: int,
        bottleneck: bool,
        act: Activation,
        parametrisation: Parametrisation,
        norm: Norm,
    ) -> None:
        super().__init__()
        fan_out = 4 * width if bottleneck else width
        sizes = [(fan_in, width, 1, 1), (width, width, 3, stride), (width, fan_out, 1, 1)]
        if not bottleneck:
            sizes = [(fan_in, width, 3, stride), (width, width, 3, 1)]
        layers: list[nn.Module] = []
        for a, b, size, by in sizes[:-1]:
            layers += [conv(a, b, size, parametrisation, stride=by), channel_norm(norm, b), activation(act)]
        a, b, size, by = sizes[-1]
        last = conv(a, b, size, parametrisation, stride=by)
        self.branch = nn.Sequential(*layers, last, channel_norm(norm, b))
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.skip = nn.Sequential(
                conv(fan_in, fan_out, 1, parametrisation, stride=stride), channel_norm(norm, fan_out)
            )
        self.act = activation(act)

    @property
    def last(self) -> Conv2d:
        """The convolution that ends the branch."""
        last = self.branch[-2]
        assert isinstance(last, Conv2d)
        return last

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the skip connection."""
        out: Tensor = self.act(self.branch(x) + self.skip(x))
        return out


def resnet_blocks(depth: int) -> tuple[list[int], bool]:
    """Return blocks per stage and whether they are bottlenecks, for a ResNet with ``depth`` weight layers.

    18, 34, 50 and 101 are the four-stage networks of their name; other even depths have three stages of basic
    blocks (20, 32, 56 are the CIFAR ones), other odd depths of the form 3 n + 2 three stages of bottlenecks.

    Raises:
        InvalidInput: No such network between 8 and 101.

    Example:
        >>> resnet_blocks(20), resnet_blocks(50), resnet_blocks(10)
        (([3, 3, 3], False), ([3, 4, 6, 3], True), ([2, 1, 1], False))
    """
    named = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
    if depth in named:
        return named[depth], depth >= 50
    per_block = 2 if depth % 2 == 0 else 3
    blocks, left = divmod(depth - 2, per_block)
    if not 8 <= depth <= 101 or left or blocks < 3:
        raise InvalidInput(
            explain(
                f"There is no ResNet-{depth}",
                "blocks hold two layers (even depths) or three (11, 17, 23, ...)",
                "Choose an even depth from 8 to 100, or 11 + 6 n up to 101",
            )
        )
    return [blocks // 3 + (stage < blocks % 3) for stage in range(3)], per_block == 3


class ResNet(nn.Module):
    """A residual network whose stages double the width ``w, 2 w, 4 w, ...`` and halve the image.

    Small images (up to 64 pixels) get a 3x3 stem, larger ones the 7x7 stem with pooling. Without norms, the last
    convolution of each of ``B`` branches has its variance divided by ``B``: the output then stays of order one at any
    depth, where it would grow as ``2^{B/2}``.

    Args:
        shape: Channels, height and width of an image.
        outputs: Outputs.
        depth: Weight layers, those of skip connections left out (see `resnet_blocks`).
        width: Channels of the first stage.
        act: Activation.
        parametrisation: ``"standard"`` or ``"ntk"``.
        norm: ``"batch"``, ``"group"`` or ``"none"``.
        bias: Whether the last layer has one; convolutions have none.
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
        norm: Norm = "batch",
        bias: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        stages, bottleneck = resnet_blocks(depth)
        small = max(shape[1:]) <= 64
        first = conv(shape[0], width, 3 if small else 7, parametrisation, stride=1 if small else 2)
        self.stem = nn.Sequential(
            first,
            channel_norm(norm, width),
            activation(act),
            nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(stages):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                here = width * 2**stage
                block = _Block(channels, here, stride, bottleneck, act, parametrisation, norm)
                if norm == "none":
                    block.last.gain = gain_of(act) / sum(stages)
                blocks.append(block)
                channels = 4 * here if bottleneck else here
        self.blocks = nn.Sequential(*blocks)
        self.head = head(channels, outputs, parametrisation, bias, output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to outputs ``(B, outputs)``."""
        out: Tensor = self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return out
