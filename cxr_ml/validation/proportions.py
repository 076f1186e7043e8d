"""Confidence intervals of shares."""

import math
from typing import NamedTuple

_Z = 1.959963984540054  # 97.5 % point of the normal distribution


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def wilson_interval(share: float, n: int) -> Interval:
    """Returns the 95 % Wilson score interval of a share, as scipy.stats.binomtest gives it.

    In closed form, since scipy.stats takes two seconds to import, which a page of the console must not wait for.
    Wilson, Probable inference, the law of succession, and statistical inference, J. Am. Stat. Assoc. 22, 1927, 209–212:
    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        share: of the n that were counted, 0 to 1.
        n: at least 1.

    Examples:
        >>> low, high = wilson_interval(81 / 263, 263)
        >>> round(low, 4), round(high, 4)
        (0.2553, 0.3662)
    """
    z2 = _Z * _Z
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    # By rounding, an end at 0 or 1 would come to lie on the wrong side of the share.
    low, high = min(share, (middle - half) / (1 + z2 / n)), max(share, (middle + half) / (1 + z2 / n))
    return Interval(max(0.0, low), min(1.0, high))
