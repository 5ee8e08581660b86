"""`bnbench bench norms`: who takes part, what is worked out, and how it is shown. No time is judged here."""

from __future__ import annotations

import json

import pytest
import torch

from bnbench import benchmarks, cli
from bnbench.benchmarks import straightforward
from bnbench.benchmarks.contenders import BN, contenders
from bnbench.benchmarks.norms import Settings, build_steps, measure, verdict
from bnbench.benchmarks.norms_table import table
from bnbench.benchmarks.timing import Seconds, Step, interleave, median_interval, summary, visit
from bnbench.norms import NORMS, build_norm

TINY = (8, 8, 4, 4)


def test_every_kind_takes_part_beside_its_reference():
    entrants = contenders(TINY, tuple(NORMS))
    names = [each.name for each in entrants]
    assert len(names) == len(set(names))
    assert {each.kind for each in entrants} == {*NORMS, "reference"}
    for each in entrants:
        assert each.reference in names
    assert [n for n in names if n.startswith("ghost")] == [
        "ghost, k=2", "ghost, k=4", "ghost, k=8", "ghost, k=8, chunk loop",
    ]  # fmt: skip


def test_contenders_share_one_input_and_gradient():
    steps = build_steps(Settings(shape=TINY), contenders(TINY, ("bn", "frn", "vbn")))
    inputs = {name: step.x for name, step in steps.items()}
    assert inputs["vbn, +8 images"].shape[0] == 16
    del inputs["vbn, +8 images"]
    assert len({id(x) for x in inputs.values()}) == 1
    assert len({id(steps[name].dys[0]) for name in inputs}) == 1


def same_layer(kind, plain, x, dy, **options):
    ours = build_norm(kind, x.shape[1], **options)
    found = []
    for layer in (ours, plain):
        y = layer(x)
        parameters = [layer.weight, layer.bias]
        found.append([y, *torch.autograd.grad(y, [x, *parameters], dy)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs.reshape(mine.shape))


def test_the_plain_formulas_are_the_same_norms():
    x = (torch.randn(TINY) + 1).requires_grad_()
    dy = torch.randn(TINY)
    same_layer("brn", straightforward.Renorm(8), x, dy, warmup=0, r_end=0, d_end=0)
    same_layer("frn", straightforward.FilterResponse(8), x, dy)
    same_layer("evonorm_s0", straightforward.EvoNormS0(8, 4), x, dy, num_groups=4)
    same_layer("evonorm_b0", straightforward.EvoNormB0(8), x, dy)


def test_median_interval_is_that_of_the_binomial():
    low, high, confidence = median_interval(list(range(20, 0, -1)))
    assert (low, high) == (6, 15)  # the table of any textbook: n = 20, 95%
    assert confidence == pytest.approx(0.9586, abs=1e-4)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0, 0.75)
    assert median_interval([1.0]) == (1.0, 1.0, 0.0)


def test_ratios_are_taken_within_a_round():
    # A machine that is ten times slower in every other round: the ratio does not see it.
    speeds = [1.0, 10.0] * 10
    pairs = [(Seconds(2 * s, 1 * s), Seconds(1 * s, 1 * s)) for s in speeds]
    found = summary(pairs)
    assert found["ratio"] == 1.5 and found["ratio_interval"] == [1.5, 1.5]


def test_a_round_visits_each_contender_beside_its_reference():
    steps = build_steps(Settings(shape=TINY), contenders(TINY, ("frn",)))
    reached = []
    for name, step in steps.items():
        step.layer.register_forward_hook(lambda *_, name=name: reached.append(name))
    pairs = interleave(steps, dict.fromkeys(steps, BN), 2, calls=dict.fromkeys(steps, 1))
    assert {len(each) for each in pairs.values()} == {2}
    # Six calls a visit: two that are not timed and one that is, of the forward pass and of both.
    visits = reached[::6]
    assert [name for name in visits for _ in range(6)] == reached
    others = [name for name in steps if name != BN]
    first, second = visits[: len(visits) // 2], visits[len(visits) // 2 :]
    assert first == [BN, *(name for other in others for name in (BN, other))]
    assert second == [BN, *(name for other in others for name in (other, BN))]


def test_the_passes_of_a_visit_add_up_on_its_own_clock():
    """A layer that moves the clock on by 2 s forward and 3 s backward takes that, whatever else takes time."""
    now = [0.0]

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            now[0] += 2.0
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            now[0] += 3.0
            return grad.clone()

    class Layer(torch.nn.Module):
        def forward(self, x):
            return Slow.apply(x)

    def wait() -> None:
        now[0] += 100.0  # a barrier, which is no part of the layer

    x = torch.ones(2, requires_grad=True)
    found = visit(Step(Layer(), x, (torch.ones(2),)), 4, lambda: now[0], wait)
    assert (found.forward, found.backward, found.total) == pytest.approx((2.0, 3.0, 5.0))


@pytest.mark.parametrize(
    ("interval", "met"), [([0.9, 1.0], "yes"), ([0.9, 1.1], "open"), ([1.04, 1.1], "no")]
)
def test_verdict_leaves_open_what_the_interval_does_not_settle(interval, met):
    row = {"ratio_interval": interval, "saved_inputs": 2.6}
    assert verdict(row, 1.03, 2.5)["ratio_met"] == met
    assert verdict(row, 1.03, 2.5)["saved_met"] == "no"
    assert "saved_met" not in verdict(row, 1.03, None)


def test_targets_are_judged_only_where_they_hold():
    assert Settings().judged and Settings(rounds=3, ranks=1).judged
    for other in (
        {"shape": TINY},
        {"dtype": "bf16"},
        {"memory_format": "channels_last"},
        {"memory": "system"},
    ):
        assert not Settings(**other).judged
    assert Settings().variant == "" and Settings(shape=TINY, dtype="bf16").variant == "8x8x4x4-bf16"


@pytest.fixture(scope="module")
def result():
    return measure(Settings(shape=TINY, rounds=2, memory="system"))


def test_result_is_json_with_every_row_whole(result):
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result, default=str))
    for name, row in result["rows"].items():
        assert row["forward_ms"] > 0 and row["backward_ms"] > 0, name
        low, high = row["ratio_interval"]
        assert low <= row["ratio"] <= high
        assert row["saved_inputs"] >= 0
        assert row["maker"] != "bnbench" or [len(each) for each in row["collectives"]] in ([0, 0], [1, 1])
        assert "ratio_met" not in row
    for name in ("frn", "evonorm_s0", "evonorm_b0", "brn"):
        assert result["rows"][name]["saved_inputs"] < 1.3  # the input, and a few (N, C) at so few pixels
    assert result["rows"]["frn, autograd"]["saved_inputs"] > 2.5


def test_table_is_aligned_and_narrow(result):
    lines = table(result).splitlines()
    assert max(map(len, lines)) <= 110
    header = next(line for line in lines if "forward" in line)
    rows = {line.split("  ")[0]: line for line in reversed(lines)}  # the ranks' rows are last
    for name, row in result["rows"].items():
        cell = rows[name][len(name) : header.index("forward") + len("forward")]
        assert float(cell) == pytest.approx(row["forward_ms"], rel=0.05), rows[name]
    assert any(line.startswith("At the world's span on 2 gloo ranks") for line in lines)


def test_table_of_judged_rows_is_narrow_too(result):
    rows = {
        name: {
            **row,
            "forward_ms": 123.4,
            "backward_ms": 234.5,
            "ratio": 10.25,
            "ratio_interval": [9.5, 99.5],
        }
        | verdict({**row, "ratio_interval": [1.0, 9.0]}, 3, 2.5)
        for name, row in result["rows"].items()
    }
    lines = table({**result, "rows": rows}).splitlines()
    assert max(map(len, lines)) <= 110
    assert any(line.endswith("3 open, 2.5 yes") for line in lines)


@pytest.mark.parametrize("extra", [["--dtype=bf16"], ["--memory-format=channels_last"]])
def test_every_contender_runs_in_bf16_and_channels_last(extra, tmp_path, capsys):
    words = ["norms", "--shape=4,8,4,4", "--rounds=1", "--ranks=1", "--memory=system", f"--out={tmp_path}"]
    assert benchmarks.main([*words, *extra]) == 0
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("norms-4x8x4x4-" + extra[0].partition("=")[2])
    content = json.loads(kept.read_text())
    assert (
        content["command"].startswith("bnbench bench norms --shape=4,8,4,4")
        and content["provenance"]["versions"]
    )
    assert set(content["rows"]) == {each.name for each in contenders((4, 8, 4, 4), tuple(NORMS))}
    assert "kept in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norms", "--kinds=gnn"], "--kinds=gnn is unknown; known: bn, "),
        (["norms", "--shape=1,2"], "--shape=1,2 must be N,C,H,W"),
        (["norms", "--shape=4,4,1,1"], "--shape=4,4,1,1: kinds"),
        (["norms", "--shape=x"], "'x' is not N,C,H,W"),
        (["norms", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["norms", "--ranks=-1"], "--ranks=-1 must be at least 1"),
        (["norms", "--dtype=fp8"], "fp8"),
        (["speed"], "speed"),
        ([], "THEME"),
    ],
)
def test_a_bad_option_is_one_line(words, said, capsys):
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnbench bench: ") and said in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(capsys):
    assert cli.main(["bench", "norms", "--device=cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
