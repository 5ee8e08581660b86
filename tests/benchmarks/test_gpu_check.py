"""scripts/gpu_check without a GPU: its parts in small are run by .ci/run; here, what it says of what goes wrong."""

from __future__ import annotations

import json

import torch

from bnbench.benchmarks.gpu import __main__ as gpu_check
from bnbench.benchmarks.gpu import agreement, layers, shared_gpu, sizes


def test_a_wrong_call_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert (
        capsys.readouterr().err
        == "gpu_check: torch sees no GPU here; --dry runs the same in small on a CPU\n"
    )
    assert gpu_check.main(["--dry", "--parts=layers,speed"]) == 2
    assert "speed is unknown; known: ranks, agreement" in capsys.readouterr().err


def test_what_a_part_raises_is_its_finding_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agreement, "measure", lambda *all: 1 / 0)
    monkeypatch.setattr(
        layers, "measure", lambda *all: {"copy_bytes_per_s": 1e12, "by_layout": {}, "left_out": []}
    )
    assert gpu_check.main(["--dry", "--parts=agreement,layers", f"--out={tmp_path}"]) == 1
    assert "failed: agreement" in capsys.readouterr().out
    (kept,) = tmp_path.iterdir()
    content = json.loads(kept.read_text())
    assert content["command"] == "scripts/gpu_check --dry --parts=agreement,layers"
    assert "ZeroDivisionError" in content["parts"]["agreement"]["error"]
    assert content["parts"]["layers"]["copy_bytes_per_s"] == 1e12


def test_a_wrong_kernel_is_found(monkeypatch):
    small = sizes.Sizes("cpu", 100, kinds=("gn",), shape=(4, 8, 6, 6), compiler="aot_eager")
    assert agreement.measure(small)["passed"]
    right = torch.nn.functional.group_norm
    monkeypatch.setattr(
        torch.nn.functional,
        "group_norm",
        lambda x, *all: right(x, *all) * (1 if x.dtype == torch.float64 else 1.001),
    )
    found = agreement.measure(small)
    assert not found["passed"] and found["rows"]["gn"]["fp32"]["distance"] > 5e-4


def test_late_shapes_are_left_out_and_said():
    small = sizes.Sizes(
        "cpu", 0, kinds=("bn",), images=2, shapes=((4, 4),), copy_bytes=2**10, rounds=1, calls=1
    )
    found = layers.measure(small, lambda: True)
    assert found["left_out"] == ["channels_last (2, 4, 4, 4)", "contiguous (2, 4, 4, 4)"]
    assert "left out for time" in layers.table(found)


def test_ranks_that_share_the_device_agree_with_fp64():
    found = shared_gpu.measure(sizes.dry(100))
    assert found["passed"] and set(found["rows"]) == {"syncbn, even", "syncbn, uneven"}
