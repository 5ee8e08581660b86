"""Every kind with the options that change its arithmetic, and its formula written out plainly.

The formulas are those of the docstrings, in the shortest eager torch: differentiated by autograd, no fused
kernel, no saved statistic, nothing of bnbench. `LAWS` in test_norms_laws.py compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bnbench.norms import build_norm

State = dict[str, Tensor]  # parameters and buffers by name
REFERENCES = 2  # how many images of a VBN input are its reference


@dataclass(frozen=True)
class Variant:
    """A kind with options. `formula(x, state, training, options)` gives the output and the new buffers."""

    kind: str
    formula: Callable[[Tensor, State, bool, dict[str, Any]], tuple[Tensor, State]]
    options: dict[str, Any] = field(default_factory=dict)
    alone: bool = False  # whether an image's output in training ignores its batch-mates
    double: bool = True  # whether its backward pass can itself be differentiated

    def __str__(self) -> str:
        return ",".join([self.kind, *(f"{key}={value}" for key, value in self.options.items())])

    def build(self, channels: int = 4, **options: Any) -> nn.Module:
        norm = build_norm(self.kind, channels, **{**self.options, **options})
        if self.kind == "vbn":
            norm.num_reference = REFERENCES  # what VirtualBatchNet does
        return norm


def randomized(norm: nn.Module, seed: int = 0) -> nn.Module:
    """`norm` with parameters of either sign, and statistics and step count of a run."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if name == "num_batches_tracked":
                tensor.fill_(seed % 13)
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.double)
            if name in ("running_var", "eps"):
                values = 0.2 + values
                values = values * torch.sign(torch.arange(len(values)) % 2 - 0.5) if name == "eps" else values
            else:
                values = 4 * values - 2
            tensor.copy_(values)
    return norm


def over_pixels(v: Tensor) -> Tensor:
    return v[..., None, None]


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, with the reduced dimensions kept."""
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


def affine(z: Tensor, s: State) -> Tensor:
    return over_pixels(s["weight"]) * z + over_pixels(s["bias"])


def groups(x: Tensor, k: int) -> list[Tensor]:
    """The groups that share statistics: image i in group i mod k."""
    return [x[g::k] for g in range(k)]


def interleaved(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts, 1).flatten(0, 1)


def merged(old: Tensor, new: list[Tensor], momentum: float, policy: str) -> Tensor:
    """A running statistic (C,) after the groups' `new` ones, by the policies' definitions."""
    if policy == "sequential":
        for group in new:
            old = (1 - momentum) * old + momentum * group
        return old
    group = new[0] if policy == "rank0" else torch.stack(new).mean(0)
    return (1 - momentum) * old + momentum * group


def by_running(x: Tensor, s: State, o: dict[str, Any]) -> tuple[Tensor, State]:
    std = (s["running_var"] + o["eps"]).sqrt()
    return affine((x - over_pixels(s["running_mean"])) / over_pixels(std), s), {}


def tracked(x: Tensor, s: State, o: dict[str, Any]) -> State:
    """The buffers of a batch norm after training on `x`: unbiased variances, merged by policy."""
    parts = groups(x.detach(), o.get("ghosts", 1))
    policy, momentum = o.get("statistics", "mean"), o["momentum"]
    after = {"num_batches_tracked": s["num_batches_tracked"] + 1}
    if "running_mean" in s:
        means = [part.mean((0, 2, 3)) for part in parts]
        after["running_mean"] = merged(s["running_mean"], means, momentum, policy)
    variances = [part.var((0, 2, 3)) for part in parts]
    return after | {"running_var": merged(s["running_var"], variances, momentum, policy)}


def bn(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    if not training:
        return by_running(x, s, o)
    parts = []
    for part in groups(x, o.get("ghosts", 1)):
        mean, var = moments(part, (0, 2, 3))
        parts.append(affine((part - mean) / (var + o["eps"]).sqrt(), s))
    return interleaved(parts), tracked(x, s, o)


def frozen(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    return by_running(x, s, o)


def ramp(step: int, start: float, end: float) -> float:
    """0 until `start`, then linearly to 1 at `end`."""
    if end <= start:
        return float(step >= start)
    return min(1.0, max(0.0, (step - start) / (end - start)))


def brn(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    if not training:
        return by_running(x, s, o)
    step = int(s["num_batches_tracked"])
    # In fp32, as the layer holds them: 1 / r_max would differ in the eighth digit.
    r_max = torch.tensor(1 + ramp(step, o["warmup"], o["r_end"]) * (o["r_max"] - 1))
    d_max = ramp(step, o["warmup"], o["d_end"]) * o["d_max"]
    running_std = (s["running_var"] + o["eps"]).sqrt()[:, None, None]
    parts = []
    for part in groups(x, o.get("ghosts", 1)):
        mean, var = moments(part, (0, 2, 3))
        std = (var + o["eps"]).sqrt()
        r = (std / running_std).clamp((1 / r_max).double(), r_max.double()).detach()
        d = ((mean - over_pixels(s["running_mean"])) / running_std).clamp(-d_max, d_max).detach()
        parts.append(affine((part - mean) / std * r + d, s))
    return interleaved(parts), tracked(x, s, o)


def vbn(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    reference = x[:REFERENCES]

    def normalized(batch: Tensor) -> Tensor:
        mean, var = moments(batch, (0, 2, 3))
        return affine((batch - mean) / (var + o["eps"]).sqrt(), s)

    each = [normalized(torch.cat([reference, image[None]]))[-1:] for image in x[REFERENCES:]]
    return torch.cat([normalized(reference), *each]), {}


def gn(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    n, c, h, w = x.shape
    grouped = x.reshape(n, o.get("num_groups", 1), -1)
    mean, var = moments(grouped, (2,))
    return affine(((grouped - mean) / (var + o["eps"]).sqrt()).reshape(n, c, h, w), s), {}


def by_dims(*dims: int) -> Callable[..., tuple[Tensor, State]]:
    def formula(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
        mean, var = moments(x, dims)
        return affine((x - mean) / (var + o["eps"]).sqrt(), s), {}

    return formula


def frn(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    eps = over_pixels(s["eps"].abs()) if o.get("learn_eps") else o["eps"]
    z = affine(x / (x.square().mean((2, 3), keepdim=True) + eps).sqrt(), s)
    if not o.get("act", True):
        return z, {}
    tau = over_pixels(s["tau"])
    return torch.where(z > tau, z, tau), {}


def evonorm_s0(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    _, var = moments(x.reshape(len(x), o["num_groups"], -1), (2,))
    std = (var + o["eps"]).sqrt().repeat_interleave(x.shape[1] // o["num_groups"], 1)[..., None]
    top = x * torch.sigmoid(over_pixels(s["v"]) * x) if o.get("act", True) else x
    return affine(top / std, s), {}


def evonorm_b0(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    parts = []
    for part in groups(x, o.get("ghosts", 1) if training else 1):
        var = moments(part, (0, 2, 3))[1] if training else over_pixels(s["running_var"])
        std = (var + o["eps"]).sqrt()
        if o.get("act", True):
            low = over_pixels(s["v"]) * part + (moments(part, (2, 3))[1] + o["eps"]).sqrt()
            std = torch.where(low > std, low, std)
        parts.append(affine(part / std, s))
    return interleaved(parts), tracked(x, s, o) if training else {}


def none(x: Tensor, s: State, training: bool, o: dict[str, Any]) -> tuple[Tensor, State]:
    return affine(x, s) if s else x, {}


# The bounds of this schedule are exact in fp32, but for 1 / r_max.
SCHEDULE = {"warmup": 2, "r_end": 10, "d_end": 6, "r_max": 3.0, "d_max": 5.0}

VARIANTS = (
    Variant("bn", bn),
    Variant("bn", bn, {"ghosts": 2}),
    Variant("bn", bn, {"ghosts": 2, "statistics": "rank0"}),
    Variant("syncbn", bn),
    Variant("ghost", bn, {"ghosts": 1}),
    Variant("ghost", bn, {"ghosts": 2}),
    Variant("ghost", bn, {"ghosts": 2, "statistics": "sequential"}),
    Variant("brn", brn, SCHEDULE, double=False),
    Variant("brn", brn, SCHEDULE | {"ghosts": 2}, double=False),
    Variant("vbn", vbn, alone=True),
    Variant("frozen", frozen, alone=True),
    Variant("frozen", bn, {"after": 0.5}),
    Variant("frozen", bn, {"after": 0.5, "ghosts": 2}),
    Variant("gn", gn, {"num_groups": 2}, alone=True),
    Variant("ln", gn, alone=True),
    Variant("ln2d", by_dims(1), alone=True),
    Variant("in", by_dims(2, 3), alone=True),
    Variant("frn", frn, alone=True, double=False),
    Variant("frn", frn, {"learn_eps": True}, alone=True, double=False),
    Variant("frn", frn, {"act": False}, alone=True, double=False),
    Variant("evonorm_s0", evonorm_s0, {"num_groups": 2}, alone=True, double=False),
    Variant("evonorm_s0", evonorm_s0, {"num_groups": 2, "act": False}, alone=True, double=False),
    Variant("evonorm_b0", evonorm_b0, double=False),
    Variant("evonorm_b0", evonorm_b0, {"ghosts": 2}, double=False),
    Variant("evonorm_b0", evonorm_b0, {"ghosts": 2, "statistics": "sequential"}, double=False),
    Variant("evonorm_b0", evonorm_b0, {"act": False}, double=False),
    Variant("ws_gn", gn, {"num_groups": 2}, alone=True),
    Variant("ws_bn", bn),
    Variant("ws_bn", bn, {"ghosts": 2}),
    Variant("none", none, alone=True),
    Variant("none", none, {"affine": False}, alone=True),
)
# One for each kind, as built by default where the channels allow.
KINDS = tuple({variant.kind: variant for variant in reversed(VARIANTS)}.values())[::-1]


def variants(*kinds: str) -> list[Variant]:
    return [variant for variant in VARIANTS if variant.kind in kinds]


def expected(variant: Variant, norm: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, State, State]:
    """The formula in fp64 on a layer's state: output, new buffers, and the leaves to differentiate by.

    `options` are those that the layer was built with besides the variant's own.
    """
    leaves = {name: p.detach().double().requires_grad_() for name, p in norm.named_parameters()}
    state = leaves | {name: b.detach().clone() for name, b in norm.named_buffers()}
    state = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    options = {"momentum": getattr(norm, "momentum", None), "eps": getattr(norm, "eps", None)} | options
    y, buffers = variant.formula(x, state, norm.training, variant.options | options)
    return y, {name: b for name, b in state.items() if name not in leaves} | buffers, leaves


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of `x` in another memory layout."""
    n, c, h, w = x.shape
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "decoded":  # one image as a (H, W, C) array has it, its first stride of no format
        last = x.contiguous(memory_format=torch.channels_last)
        return last[0][None] if n == 1 else last
    if layout == "channels":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "images":
        return x.repeat_interleave(2, 0)[::2]
    if layout == "window":
        big = x.new_zeros(n, c, h + 1, w + 2)
        big[:, :, 1:, 1:-1] = x
        return big[:, :, 1:, 1:-1]
    assert layout == "transposed", layout
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = ("contiguous", "channels_last", "decoded", "channels", "images", "window", "transposed")


@dataclass(frozen=True)
class Input:
    """Sizes, values and layouts of an input and of the gradient that comes back."""

    images: int
    channels: int
    side: tuple[int, int]
    mean: float
    std: float
    layout: str
    gradient: str
    seed: int

    def tensors(self, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.images, self.channels, *self.side)
        x = torch.randn(shape, generator=generator, dtype=torch.double) * self.std + self.mean
        dy = torch.randn(shape, generator=generator, dtype=torch.double)
        if self.gradient == "expanded":
            dy = dy[:, :, :1, :1].to(dtype).expand(shape)
        else:
            dy = laid_out(dy.to(dtype), self.gradient)
        return laid_out(x.to(dtype), self.layout), dy


# At least two images and pixels, and even numbers of images and channels: what every variant takes.
INPUTS = st.builds(
    Input,
    images=st.sampled_from([4, 6, 2, 8]),
    channels=st.sampled_from([2, 4, 6]),
    side=st.sampled_from([(2, 2), (3, 4), (1, 3), (5, 1), (4, 4)]),
    mean=st.sampled_from([0.0, 3.0, -1.0]),
    std=st.sampled_from([1.0, 0.2, 10.0]),
    layout=st.sampled_from(LAYOUTS),
    gradient=st.sampled_from(["contiguous", "channels_last", "expanded", "window"]),
    seed=st.integers(0, 2**16),
)


def assert_close(got: Tensor, want: Tensor, tolerance: float, what: Any = "") -> None:
    """Within `tolerance` of the values' scale (at least 1), compared in fp64."""
    assert got.shape == want.shape, (what, got.shape, want.shape)
    got, want = got.detach().double(), want.detach().double()
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    error = (got - want).abs().max().item() if want.numel() else 0.0
    assert math.isfinite(error) and error <= tolerance * scale, (
        f"{what}: off by {error:.3g}, scale {scale:.3g}"
    )
