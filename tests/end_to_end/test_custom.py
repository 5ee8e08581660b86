"""A user's own norm, model and data: the examples of docs/custom.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import NO_LOGGER, TINY, bnbench, records, train

PAGE = Path(__file__).parents[2] / "docs" / "custom.md"
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FILES = {code.splitlines()[0].removeprefix("# "): code for language, code in BLOCKS if language == "python"}
COMMANDS = [shlex.split(code) for language, code in BLOCKS if language == "bash"]


@pytest.fixture
def own(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's files in it, and a search path that other folders leave alone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, code in FILES.items():
        (workplace / name).write_text(code)
    return workplace


def test_the_page_has_one_example_of_each() -> None:
    assert sorted(FILES) == ["my_data.py", "my_models.py", "my_norms.py"]
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        assert command[:2] == ["bnbench", "train"]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_an_example_runs_as_it_stands(own: Path, words: list[str]) -> None:
    if words is COMMANDS[0]:  # in a process of its own: there the working folder is not on the path by itself
        done = bnbench(*words[1:], *TINY, *NO_LOGGER, cwd=own)
        assert done.returncode == 0, done.stderr
    else:
        assert train(*words[2:], *TINY, *NO_LOGGER) == 0
    (record,) = records(own / "runs")
    assert record.status == "completed"
    group, _, key = words[2].partition("=")
    assert key == "custom"
    asked = dict(word.lstrip("+").split("=") for word in words[3:])
    identity = record.identity[group]
    assert identity["name"] == asked[f"{group}.name"]
    assert identity["source"]
    for word, value in asked.items():
        if ".options." in word:
            assert identity["options"][word.rpartition(".")[2]] == float(value)


def test_an_edited_norm_is_another_run_and_an_untouched_one_is_kept(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*COMMANDS[0][2:], *TINY, *NO_LOGGER, "name=x")
    assert train(*words) == 0
    assert train(*words) == 0
    assert "finished already" in capsys.readouterr().out
    assert len(records(own / "runs")) == 1
    with (own / "my_norms.py").open("a") as file:
        file.write("\n# a thought\n")
    assert train(*words) == 0
    assert len(records(own / "runs")) == 2


SPAN_NORM = '''
from torch import nn

class Noted(nn.BatchNorm2d):
    """Says in its buffers' names how it was called."""
    def __init__(self, num_features, **options):
        super().__init__(num_features)
        given = "_".join(sorted(options)) or "nothing"
        self.register_buffer(f"called_with_{given}", self.running_mean.new_tensor(options.get("ghosts", 0)))
'''


@pytest.mark.parametrize(("nbs", "given"), [(8, "ghosts"), (32, "nothing"), (64, "process_group")])
def test_a_norm_over_images_is_called_with_what_its_span_needs(own: Path, nbs: int, given: str) -> None:
    import torch

    (own / "span_norm.py").write_text(SPAN_NORM)
    words = ("norm=custom", "norm.name=span_norm.Noted", "norm.family=batch", f"norm.batch_size={nbs}")
    assert train(*words, *TINY, *NO_LOGGER) == 0
    (record,) = records(own / "runs")
    assert record.identity["nbs"] == nbs
    (file,) = own.rglob("weights.pt")
    called = {k: v for k, v in torch.load(file).items() if "called_with" in k}
    assert {key.partition("called_with_")[2] for key in called} == {given}
    assert {value.item() for value in called.values()} == {4.0 if given == "ghosts" else 0.0}


MISTAKES = {
    "no such module": (["norm=custom", "norm.name=nowhere.Norm"], ["nowhere", "PYTHONPATH"]),
    "no such package": (["model=custom", "model.name=a.b.Net"], ["no module a.b"]),
    "no such class": (["norm=custom", "norm.name=my_norms.Pixel"], ["my_norms", "Pixel"]),
    "no path": (["norm=custom", "norm.name=PixelNorm"], ["PixelNorm"]),
    "no name": (["norm=custom"], ["norm.name has no value"]),
    "not under another norm": (["norm.name=my_norms.PixelNorm"], ["choose norm=custom"]),
    "unknown option": (
        ["norm=custom", "norm.name=my_norms.PixelNorm", "+norm.options.eqs=1"],
        ["'eqs'", "known: eps"],
    ),
    "NBS of a norm without one": (
        ["norm=custom", "norm.name=my_norms.PixelNorm", "norm.batch_size=4"],
        ["norm.batch_size=4", "ignored"],
    ),
    "family": (["norm=custom", "norm.name=my_norms.PixelNorm", "norm.family=row"], ["row", "batch, channel"]),
    "unknown option of data": (
        ["data=custom", "data.name=my_data.stripes", "+data.options.color=1"],
        ["data.name=my_data.stripes", "color"],
    ),
    "no images": (["data=custom", "data.name=my_data.torch"], ["my_data.torch"]),
}


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing(
    own: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    assert train(*TINY, *NO_LOGGER, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for text in said:
        assert text in line
    assert not (own / "runs").exists()


def test_nothing_of_a_users_is_imported_to_check_the_words(own: Path) -> None:
    (own / "loud").mkdir()
    for name in ("__init__.py", "norms.py"):
        (own / "loud" / name).write_text("raise SystemExit('imported')\n")
    done = bnbench("train", "norm=custom", "norm.name=loud.norms.Norm", "epochs=0", cwd=own)
    assert done.returncode == 2
    assert "epochs=0" in done.stderr


BRANCHING = """
from my_models import Plain

class Branching(Plain):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else images * 1)
"""


def test_of_a_model_that_cannot_be_traced_it_is_told_what_runs(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page says: FRN runs without its activation and says so, norm=none is refused."""
    (own / "my_branching.py").write_text(BRANCHING)
    words = ("model=custom", "model.name=my_branching.Branching", *TINY, *NO_LOGGER, "name=x")
    assert train("-m", *words, "norm=frn", "optim.lr=0.01,0.1") == 0
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("[")] == [
        "[1/2] Branching-frn-s0 lr=0.01",
        "[2/2] Branching-frn-s0 lr=0.1",
    ]
    assert out.count("act=False: the model cannot be traced\n") == 1
    assert "frn in my_branching.Branching: " in (own / "runs" / "x" / "report" / "report.md").read_text()
    assert train(*words, "norm=none") != 0
