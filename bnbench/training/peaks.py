"""The most floating-point operations a second of GPUs, as their vendor states them: the denominator of MFU.

Dense, at the boost clock: data sheets print figures twice as large beside them, for matrices that are half zeros, and
some tables mix the two. Source: NVIDIA's data sheet of each product (of HGX B200, per GPU); for GeForce its GA102 and
Ada architecture whitepapers, 16-bit products added up in fp32.
"""

from __future__ import annotations

import re

TERA = 1e12
# In tera: fp32 (without tensor cores), tf32, bf16 (both with); None where the GPU has no such arithmetic.
Peaks = tuple[float, float | None, float | None]
# By the whole of torch's name for the device: a slice of one (MIG) or its laptop version is another device.
PEAKS: dict[str, Peaks] = {
    r"Tesla V100-SXM\d-\d+GB": (15.7, None, None),
    r"Tesla V100-PCIE-\d+GB": (14.0, None, None),
    r"Tesla V100S-PCIE-32GB": (16.4, None, None),
    r"Tesla T4": (8.1, None, None),
    r"(NVIDIA )?A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": (19.5, 156, 312),
    r"(NVIDIA )?A10": (31.2, 62.5, 125),
    r"(NVIDIA )?A30": (10.3, 82, 165),
    r"(NVIDIA )?A40": (37.4, 74.8, 149.7),
    r"(NVIDIA )?RTX A6000": (38.7, 77.4, 154.8),
    r"(NVIDIA )?GeForce RTX 3090": (35.6, 35.6, 71),
    r"NVIDIA GeForce RTX 4090": (82.6, 82.6, 165.2),
    r"NVIDIA L4": (30.3, 60, 121),
    r"NVIDIA L40": (90.5, 90.5, 181),
    r"NVIDIA L40S": (91.6, 183, 362),
    r"NVIDIA H100 PCIe": (51, 378, 756),
    r"NVIDIA H100 80GB HBM3": (67, 494.7, 989.4),
    r"NVIDIA H100 NVL": (60, 417.5, 835.5),
    r"NVIDIA H200": (67, 494.7, 989.4),
    r"NVIDIA H200 NVL": (60, 417.5, 835.5),
    r"NVIDIA GH200 \d+GB": (67, 494.7, 989.4),
    r"NVIDIA B200": (75, 1125, 2250),
}


def peak_flops_per_s(name: str | None, precision: str, tf32: bool) -> float | None:
    """Of the device that torch calls `name` (None: a CPU), at a `trainer.precision`; None if it is not known.

    None for fp64 too: here it is for proofs, and no one's throughput is judged by it.
    """
    found = next((peaks for pattern, peaks in PEAKS.items() if name and re.fullmatch(pattern, name)), None)
    if found is None or precision == "fp64":
        return None
    fp32, with_tf32, bf16 = found
    peak = bf16 if precision == "bf16" else with_tf32 if tf32 and with_tf32 else fp32
    return None if peak is None else TERA * peak
