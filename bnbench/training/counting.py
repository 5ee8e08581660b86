"""What one step asks of a device and of the other ranks: floating-point operations and collectives, counted exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

NAMESPACES = ("c10d", "_c10d_functional")
# Neither moves data between ranks.
NOT_COLLECTIVE = ("barrier", "monitored_barrier", "wait_tensor", "wait_tensors", "check_for_nan")
# torch's operators begin so, in either namespace; beside the kind, where what this rank puts in stands among an
# operator's arguments in c10d. In _c10d_functional it is always the first.
KINDS = {
    "allreduce": ("all_reduce", 0),
    "all_reduce": ("all_reduce", 0),
    "allgather": ("all_gather", 1),
    "all_gather": ("all_gather", 1),
    "reduce_scatter": ("reduce_scatter", 1),
    "broadcast": ("broadcast", 0),
    "alltoall": ("all_to_all", 1),
    "all_to_all": ("all_to_all", 1),
    "reduce": ("reduce", 0),
    "gather": ("gather", 1),
    "scatter": ("scatter", 1),
    "send": ("send", 0),
    "isend": ("send", 0),
    "recv": ("receive", 0),
    "irecv": ("receive", 0),
}


@dataclass(frozen=True)
class Collective:
    """One that this rank started: its `kind` in torch.distributed's words and the `bytes` that this rank puts in.

    Of an all_gather they are its own part, of a broadcast or a receive what goes through. What a wire carries depends
    on the backend's algorithm: a ring's all_reduce sends 2 (W - 1) / W of them. `storage` is the address of the first
    tensor's memory, `part` the part of the step that it fell into.
    """

    kind: str
    bytes: int
    storage: int
    part: str


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *settings: Any, out_val: Any = None
) -> int:
    """As much as forward for the input's gradient, where that is asked for, and as much again for the weight's.

    torch's own formula (2.11 to 2.15) takes a grouped convolution's weight gradient for that of a dense one, 32 times
    too much in ResNeXt.
    """
    *_, transposed, _, _, wanted = settings
    once = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed)
    return once * sum(wanted[:2])


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward,
}


class Counting(TorchDispatchMode):
    """While it is entered, sees every operator that torch dispatches on this thread and, in a backward pass, on
    autograd's: also those of DDP's reducer, and a collective under a wrapper that nobody thought of.

    `flops` by torch's formulas (`torch.utils.flop_counter`): matrix products and convolutions, a multiplication and an
    addition being two; elementwise work and reductions, a norm's among them, count nothing. None where a formula
    fails. `part` tells which part of the step is under way; operations count in a forward or backward pass alone.

    Every operator takes some microseconds more, and does what it would do: nothing is replaced or decomposed.
    """

    def __init__(self, part: Callable[[], str] = lambda: "forward") -> None:
        super().__init__()
        self.part = part
        self.flops: int | None = 0
        self.collectives: list[Collective] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A compiled network runs as it is, rather than eagerly: its convolutions and matrix products are calls of
        kernels, and seen (unless a template is fused into them, as `max_autotune` may do)."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace in NAMESPACES:
            self._note(func.namespace, func.overloadpacket.__name__, (*args, *kwargs.values()))
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None and self.flops is not None and self.part() in ("forward", "backward"):
            try:
                self.flops += formula(*args, **kwargs, out_val=out)
            except Exception:  # they assert what shapes they know: training goes on without
                self.flops = None
        return out

    def _note(self, namespace: str, operator: str, operands: tuple[Any, ...]) -> None:
        name = operator.strip("_")
        if name in NOT_COLLECTIVE:
            return
        # The longest beginning: reduce_scatter is no reduce.
        begins = max((known for known in KINDS if name.startswith(known)), key=len, default=None)
        kind, place = (name, 0) if begins is None else KINDS[begins]
        place = place if namespace == "c10d" else 0
        tensors = list(_tensors(operands[place : place + 1]))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        storage = tensors[0].untyped_storage().data_ptr() if tensors else 0
        self.collectives.append(Collective(kind, size, storage, self.part()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def by_owner(
    collectives: Iterable[Collective], gradients: Iterable[Tensor]
) -> dict[str, dict[str, dict[str, int]]]:
    """Owner -> kind -> `count` and `bytes`.

    `gradients`: of DDP, told by its buckets, whose memory the parameters' `gradients` are views of. `norm`: the other
    collectives of a forward or backward pass, for no layer but a norm shares anything over ranks (a layer of a user's
    own model that does counts here too). `other`: the rest; in a step of ours there is none.
    """
    buckets = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for each in collectives:
        owner = "gradients" if each.storage in buckets else "norm"
        if each.part not in ("forward", "backward"):
            owner = "other"
        sums = found.setdefault(owner, {}).setdefault(each.kind, {"count": 0, "bytes": 0})
        sums["count"] += 1
        sums["bytes"] += each.bytes
    return found
