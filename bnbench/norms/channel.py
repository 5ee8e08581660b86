"""Normalization of each image by itself: no statistics over images, no running statistics."""

from __future__ import annotations

from torch import nn


def group_norm(num_features: int, *, num_groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018): mean and biased variance of each image over C / num_groups channels and H, W.

    Input and output (N, C, H, W). Raises ValueError if `num_groups` does not divide `num_features`;
    `largest_groups` gives the nearest count that does.
    """
    if num_groups < 1 or num_features % num_groups:
        divisors = [n for n in range(1, num_features + 1) if num_features % n == 0]
        raise ValueError(
            f"gn: num_groups={num_groups} does not divide num_features={num_features}; "
            f"choose one of {', '.join(map(str, divisors))}"
        )
    return nn.GroupNorm(num_groups, num_features, eps=eps)


def largest_groups(num_features: int, num_groups: int) -> int:
    """The largest divisor of `num_features` not above `num_groups`: the stated policy of a model swap."""
    return max(n for n in range(1, min(num_groups, num_features) + 1) if num_features % n == 0)
