"""The layers as torch modules.

Initialisation, the same for all: every logit is a sum over its inputs whose weights have the variance 1 / (3 n), n
being the number of inputs it really reads, as in torch.nn.Linear. So the logits of dense, per-label, group-shared, head
and tail labels start on one scale, whatever D, K and r are: E[y^2] = E[x^2] / 3. Biases start at zero; for a summed
cross-entropy over many labels, set them to the logit of the share of positives, or the first steps do only that.
"""

from __future__ import annotations

from gskernels.nn.bottleneck import BottleneckLinear
from gskernels.nn.head_tail import HeadTailLinear
from gskernels.nn.sparse import FixedFanInLinear, GroupSharedLinear

__all__ = ["BottleneckLinear", "FixedFanInLinear", "GroupSharedLinear", "HeadTailLinear"]
