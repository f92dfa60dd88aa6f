"""How likely it is that a silent node will be heard of again: phi accrual failure detection.

Source: Hayashibara, Défago, Yared, Katayama: The phi accrual failure detector (SRDS 2004). Phi is minus the decimal
logarithm of the chance that a heartbeat comes even later than now, if the gaps between heartbeats are normal. A node
whose beats come at even times is suspected soon; one on a busy machine, whose gaps vary, is given longer.
"""

from dataclasses import dataclass
from math import erfc, inf, log10, sqrt

SUSPECT_AT = 8.0
SHORTEST_DEVIATION_S = 0.1
SMOOTHING = 0.1
"""Weight of the newest gap: about the last twenty count."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Gaps between the heartbeats of a node, in seconds; smoothed exponentially."""

    mean_s: float
    variance_s2: float = 0.0

    def after(self, gap_s: float) -> "Rhythm":
        """With one more gap."""
        off_s = gap_s - self.mean_s
        return Rhythm(
            mean_s=self.mean_s + SMOOTHING * off_s,
            variance_s2=(1 - SMOOTHING) * (self.variance_s2 + SMOOTHING * off_s * off_s),
        )

    def phi(self, silent_s: float) -> float:
        """Suspicion of a node that was heard of `silent_s` ago, from 0 on; 8: one in 10^8 is still late."""
        deviation_s = max(SHORTEST_DEVIATION_S, sqrt(self.variance_s2))
        still_to_come = erfc((silent_s - self.mean_s) / (deviation_s * sqrt(2))) / 2
        return -log10(still_to_come) if still_to_come > 0 else inf
