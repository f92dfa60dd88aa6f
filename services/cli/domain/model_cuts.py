"""At which layers a new model is cut to see whether its family may be."""

from itertools import pairwise


def trial_ranges(num_layers: int) -> tuple[tuple[int, int], ...]:
    """Up to three uneven stages: a first, a middle and a last one, since each kind is made in its own way."""
    bounds = sorted({0, 1, max(1, num_layers // 2), num_layers})
    return tuple(pairwise(bounds))
