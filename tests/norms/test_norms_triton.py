"""The Triton kernels: on a GPU, or interpreted, in a process of its own since Triton decides at its import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnbench.norms import GroupNorm, fused

LAWS = Path(__file__).with_name("triton_laws.py")

pytestmark = pytest.mark.norms


@pytest.mark.once
@pytest.mark.skipif(not fused.AVAILABLE, reason="this torch came without Triton")
def test_kernels_keep_their_laws():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "addopts=",
        str(LAWS),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 40, done.stdout


def test_a_cpu_tensor_takes_torchs_kernels():
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    layer = GroupNorm(8, num_groups=2)
    layer(x)
    assert not fused.applies(x) and layer.kernel == "torch"
