"""README.md says what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

from bnbench import catalog
from bnbench.norms import NORMS

ROOT = Path(__file__).parents[1]


def test_the_table_of_kinds_is_the_one_that_norms_gives() -> None:
    kinds = runpy.run_path(str(ROOT / "scripts" / "kinds"))
    readme = (ROOT / "README.md").read_text()
    assert kinds["renewed"](readme) == readme, "run: python scripts/kinds --write"
    assert all(f"| `{kind}` |" in readme for kind in NORMS)
    assert all(info.source for info in catalog.NORMS.values())
