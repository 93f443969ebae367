"""How close is close enough, by stage, dtype and device.

On the CPU a port runs the same operations in the same order, so the gate is equality, in every dtype. On an
accelerator kernels may be chosen differently; there the bounds are those published for hand-made ports. A bound is
never loosened to accept a mismatch.
"""

from __future__ import annotations

import functools
import math

from pydantic import BaseModel

from porter.parity.metrics import Metrics


class Gate(BaseModel):
    """Upper bound of the relative L2 distance and lower bounds of the scores; all must hold."""

    exact: bool = False
    rel_l2: float = math.inf
    cosine: float = -1.0
    ssim: float = -1.0
    psnr: float = -math.inf

    def passes(self, found: Metrics) -> bool:
        """Whether a measured distance is within the gate."""
        if found.equal:
            return True
        if self.exact:
            return False
        scored = found.ssim is None or found.ssim >= self.ssim
        clear = found.psnr is None or found.psnr >= self.psnr
        return found.rel_l2 <= self.rel_l2 and found.cosine >= self.cosine and scored and clear


EXACT = Gate(exact=True)

_ACCELERATOR = {
    "component": Gate(rel_l2=0.02, cosine=0.999),
    "codec": Gate(rel_l2=0.02, cosine=0.999),
    "step": Gate(rel_l2=0.065, cosine=0.998),
    "processor": Gate(rel_l2=0.065, cosine=0.998),
    "final": Gate(ssim=0.97, psnr=30.0),
}


@functools.cache
def gate_for(kind: str, device: str) -> Gate:
    """The gate of a stage kind on a device (``cpu``, ``cuda:0``, …)."""
    return EXACT if device.split(":")[0] == "cpu" else _ACCELERATOR.get(kind, EXACT)
