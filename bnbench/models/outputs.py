"""What a model returns, made one thing: the logits, and those of its auxiliary heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def logits_of(output: Any) -> list[Tensor]:
    """The logits (N, classes) of a model's output, those of the auxiliary heads behind the main ones.

    `output` is a Tensor, or a sequence with the main logits first: InceptionOutputs, GoogLeNetOutputs, or
    the plain tuple that a rewritten graph gives. Heads that returned None are dropped. The loss is

        logits, *others = logits_of(model(images))
        loss = cross_entropy(logits, labels) + aux_weight * sum(cross_entropy(o, labels) for o in others)

    with `aux_weight = getattr(model, "aux_weight", 0.0)`, read before anything wraps or rewrites the model.
    Raises ValueError for any other output.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Sequence):
        heads = [head for head in output if head is not None]
        if heads and output[0] is not None and all(isinstance(head, Tensor) for head in heads):
            return heads
    raise ValueError(
        f"a model must return its logits, or a sequence that starts with them; this one returned "
        f"{type(output).__name__}"
    )
