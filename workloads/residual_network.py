"""ResNet-18 and ResNet-50 (He et al. 2016, Deep Residual Learning, table 1), parameters named as torchvision's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from workloads.layers import Conv2d, Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    Norm = Callable[[int], nn.Module]

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_GROUPS = 32


def group_norm(channels: int) -> nn.Module:
    """Return GroupNorm of 32 groups (Wu and He 2018): a sample's output does not depend on its batch."""
    return nn.GroupNorm(_GROUPS, channels)


def batch_norm(channels: int) -> nn.Module:
    """Return BatchNorm, whose output depends on the samples of the same micro-batch."""
    return nn.BatchNorm2d(channels)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), norm(width)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map (samples, inputs, h, w) to (samples, width, h / stride, w / stride)."""
        hidden = functional.relu(self.bn1(self.conv1(features)))
        hidden = self.bn2(self.conv2(hidden))
        shortcut = features if self.downsample is None else self.downsample(features)
        return functional.relu(hidden + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which strides), 1 x 1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map (samples, inputs, h, w) to (samples, 4 width, h / stride, w / stride)."""
        hidden = functional.relu(self.bn1(self.conv1(features)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        shortcut = features if self.downsample is None else self.downsample(features)
        return functional.relu(hidden + shortcut)


class ResidualNetwork(nn.Module):
    """Stem, four stages of blocks, average pooling, linear head.

    Args:
        depth: 18 or 50.
        channels: of the images.
        classes: logits a sample.
        norm: `group_norm` or `batch_norm`.
        small_images: a 3 x 3 stem of stride 1 without pooling, for images of a few pixels (the paper's
            section 4.2); else 7 x 7 of stride 2 and 3 x 3 max pooling.
    """

    def __init__(self, depth: int, channels: int, classes: int, norm: Norm, *, small_images: bool) -> None:
        super().__init__()
        block = BasicBlock if depth == 18 else Bottleneck
        self.small_images = small_images
        self.conv1 = _conv(channels, 64, 3) if small_images else _conv(channels, 64, 7, 2)
        self.bn1 = norm(64)
        inputs = 64
        for number, count in enumerate(STAGES[depth]):
            width, blocks = 64 * 2**number, []
            for index in range(count):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(block(inputs, width, stride, norm))
                inputs = block.expansion * width
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = Linear(inputs, classes)

    def forward(self, images: Tensor, sample: Tensor) -> Tensor:
        """Return logits, shape (samples, classes), of images of shape (samples, channels, h, w)."""
        features = functional.relu(self.bn1(self.conv1(images.to(self.conv1.weight.dtype))))
        if not self.small_images:
            features = functional.max_pool2d(features, 3, stride=2, padding=1)
        for number in range(4):
            features = self.get_submodule(f"layer{number + 1}")(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits
