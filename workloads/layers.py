"""torch's layers, constructed without drawing initial values.

A workload's `initialise` fills every tensor afterwards, so torch's own draws would be wasted: about half a second
for GPT-2's embedding and, on the meta device, a second of imports. Until then values are undefined.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """An affine map with undefined values."""

    def reset_parameters(self) -> None:
        """Leave values as they are."""


class Embedding(nn.Embedding):
    """A lookup table with undefined values."""

    def reset_parameters(self) -> None:
        """Leave values as they are."""


class Conv2d(nn.Conv2d):
    """A convolution with undefined values."""

    def reset_parameters(self) -> None:
        """Leave values as they are."""


class LSTM(nn.LSTM):
    """A recurrent layer with undefined values."""

    def reset_parameters(self) -> None:
        """Leave values as they are."""
