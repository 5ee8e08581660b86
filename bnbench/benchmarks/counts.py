"""What a layer keeps for its backward pass, and how often it talks to the other ranks: exact, not timed."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bnbench.training.counting import Counting

from .timing import Step


def saved_bytes(step: Step) -> dict[str, int]:
    """Bytes of the storages that the graph of a forward pass saves, each storage once and whole.

    `all` of them; `input`, the part that is the layer's input, which it must not copy to keep; `output`, the
    part that is its output (as ReLU's), which the next layer mostly keeps too and shares. Parameters and
    buffers do not count: they are there anyway. Tensors that a custom function hides on its context instead
    of saving them would be missed; none of ours does.
    """
    saved: dict[int, Tensor] = {}  # by address; the tensors stay alive, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(_address(tensor), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        ys = step.forward()
    for tensor in (*step.layer.parameters(), *step.layer.buffers()):
        saved.pop(_address(tensor), None)
    of_input, of_output = {_address(step.x)}, {_address(y) for y in ys}
    sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in saved.items()}
    return {
        "all": sum(sizes.values()),
        "input": sum(size for address, size in sizes.items() if address in of_input),
        "output": sum(size for address, size in sizes.items() if address in of_output - of_input),
    }


def collectives(step: Step) -> tuple[list[str], list[str]]:
    """The kinds of collectives that a forward and a backward pass start on this rank, in their order."""
    with Counting() as forward:
        ys = step.forward()
    with Counting() as backward:
        step.backward(ys)
    forward_kinds, backward_kinds = ([each.kind for each in seen.collectives] for seen in (forward, backward))
    return forward_kinds, backward_kinds


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
