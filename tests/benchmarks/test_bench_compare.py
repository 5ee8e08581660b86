"""`bnbench bench compare`: every file that is in results/, what has changed, and files that are none of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bnbench import benchmarks, cli
from bnbench.benchmarks import compare
from bnbench.benchmarks.figures import Figure
from bnbench.benchmarks.results import keep

RESULTS = Path(__file__).parents[2] / "results"


def kept_file(folder: Path, *figures: Figure, theme="startup", cpu="A CPU", day=1, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{theme}_a-cpu_2026-01-{day:02}.json"
    content = {
        "theme": theme,
        "command": f"bnbench bench {theme} --rounds 6",
        "figures": [figure.to_json() for figure in figures],
        "provenance": {
            "git": {"commit": f"{day:07}abcdef", "dirty": False},
            "host": {"cpu": cpu, "cores": 2},
            "written": f"2026-01-{day:02}T10:00:00+00:00",
        },
        **more,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("before", "after", "better", "unit", "said"),
    [
        ((1.0, 0.9, 1.1), (1.3, 1.2, 1.4), "lower", "s", "slower"),
        ((1.3, 1.2, 1.4), (1.0, 0.9, 1.1), "lower", "s", "faster"),
        ((1.0, 0.9, 1.1), (1.3, 1.1, 1.4), "lower", "s", "within noise"),
        ((1.0, 0.9, 1.1), (1.3, 1.2, 1.4), "higher", "images/s", "faster"),
        ((1.3, 1.2, 1.4), (1.0, 0.9, 1.1), "higher", "x", "slower"),
        ((1.3, 1.2, 1.4), (1.0, 0.9, 1.1), "lower", "MB", "smaller"),
        ((1.0, 0.9, 1.1), (1.3, 1.2, 1.4), "lower", "MB", "larger"),
        ((1.0,), (1.3, 1.2, 1.4), "lower", "s", "without an interval"),
    ],
)
def test_a_change_is_one_beyond_both_intervals(before, after, better, unit, said):
    one, other = (Figure("f", *numbers, unit=unit, better=better) for numbers in (before, after))
    assert compare.change(one, other, same_hardware=True) == said


def test_seconds_of_other_hardware_are_not_compared_and_ratios_are():
    for unit, said in (("s", "on other hardware"), ("x", "slower")):
        one, other = Figure("f", 1.0, 0.9, 1.1, unit=unit), Figure("f", 2.0, 1.9, 2.1, unit=unit)
        assert compare.change(one, other, same_hardware=False) == said


def test_side_by_side(tmp_path, capsys):
    old = Figure("train --help", 1.0, 0.9, 1.1, "s", 1.5)
    new = Figure("train --help", 1.6, 1.55, 1.7, "s", 1.5)
    gone, fresh = Figure("gone", 1.0, 0.9, 1.1), Figure("fresh", 1.0, 0.9, 1.1)
    first = kept_file(tmp_path / "a", old, gone)
    second = kept_file(tmp_path / "b", new, fresh, day=2)
    assert cli.main(["bench", "compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "startup"
    assert lines[1].startswith(
        f"  A  {first}: commit 0000001, 2026-01-01 10:00, A CPU 2 cores, `bnbench bench"
    )
    rows = [line.split("   ") for line in lines[4:]]
    texts = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert texts == [
        [
            "train --help",
            "1.000 [0.900, 1.100] s, at most 1.5: yes",
            "1.600 [1.550, 1.700] s, at most 1.5: no, slower",
        ],
        ["gone", "1.000 [0.900, 1.100] x", "–"],
        ["fresh", "–", "1.000 [0.900, 1.100] x"],
    ]
    assert cli.main(["bench", "compare", str(second), str(first)]) == 0
    assert "at most 1.5: yes, faster" in capsys.readouterr().out, "the order is the user's"


def test_a_folder_is_read_by_date_and_variants_are_themes_of_their_own(tmp_path):
    figure = Figure("f", 1.0, 0.9, 1.1)
    for day in (3, 1, 2):
        kept_file(tmp_path, figure, day=day)
    kept_file(tmp_path, figure, theme="norms", variant="8x8x4x4-bf16")
    kept, left_out = compare.read([tmp_path])
    assert left_out == []
    assert [each.date[:10] for each in kept if each.theme == "startup"] == [
        f"2026-01-0{n}" for n in (1, 2, 3)
    ]
    assert [each.theme for each in kept if each.theme != "startup"] == ["norms-8x8x4x4-bf16"]


def test_every_result_of_this_repository_is_read():
    kept, left_out = compare.read([RESULTS])
    themes = {each.theme for each in kept}
    assert {"norms", "step", "sweep", "measuring", "gpu-check"} <= themes
    assert all(each.figures for each in kept)
    assert all("scale" in line or "before-triton" in line for line in left_out) and len(left_out) >= 1
    by_theme: dict[str, dict[str, Figure]] = {}
    for each in kept:
        by_theme.setdefault(each.theme, {}).update({figure.name: figure for figure in each.figures})
    bn = by_theme["norms"]["bn / torch BatchNorm2d"]
    assert bn.target == 1.03 and bn.low is not None and bn.low < bn.value
    assert by_theme["step"]["32 images: bnbench / bare"].target == 1.07  # as such files once were
    assert by_theme["step"]["resnet50-4: bnbench / bare"].target == 1.02
    assert by_theme["sweep"]["pool: a further run beside its training"].unit == "s"
    text = compare.table(kept, left_out)
    assert "one result of this theme: nothing to compare it with" in text
    assert text.endswith(left_out[-1])


def test_what_a_theme_keeps_is_what_compare_reads(tmp_path):
    figures = [Figure("f", 1.0, 0.9, 1.1, target=1.0), Figure("g", 3.0, unit="MB")]
    result = {"variant": "small", "figures": [figure.to_json() for figure in figures]}
    path = keep(tmp_path, "data", ["data", "--rounds", "6", "--out", "there"], result)
    assert path.name.startswith("data-small_")
    (kept,), _ = compare.read([path])
    assert (kept.theme, kept.command, kept.figures) == (
        "data-small",
        "bnbench bench data --rounds 6",
        figures,
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"command": "bnb', "broken JSON"),
        ("\x00\xff", "broken JSON"),
        ("[1, 2]", "no result of `bnbench bench`"),
        ('{"some": "json"}', "no result of `bnbench bench`"),
        ('{"command": "bnbench bench startup"}', "no provenance"),
        ('{"command": "bnbench bench future", "provenance": {}}', "is no theme of `bnbench bench`"),
        ('{"command": "bnbench"}', "no result of `bnbench bench`"),
    ],
)
def test_what_is_none_of_ours_is_a_line(text, why, tmp_path, capsys):
    file = tmp_path / "odd.json"
    file.write_bytes(text.encode("latin-1"))
    good = kept_file(tmp_path / "good", Figure("f", 1.0, 0.9, 1.1))
    assert cli.main(["bench", "compare", str(file), str(good)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{file} is left out: ") and why in said[-1]
    assert cli.main(["bench", "compare", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and why in error and "--out" in error


@pytest.mark.parametrize("change", [{"figures": [{"name": "f"}]}, {"figures": 3}, {"figures": [3]}])
def test_broken_figures_are_a_line(change, tmp_path):
    path = kept_file(tmp_path, Figure("f", 1.0))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="figure"):
        compare.read([path])


def test_a_result_of_another_version_is_a_line(tmp_path):
    for theme, why in (("step", "another version"), ("startup", "an older version, without figures")):
        path = kept_file(tmp_path, theme=theme)
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "figures"}))
        with pytest.raises(ValueError, match=why):
            compare.read([path])


@pytest.mark.parametrize("words", [["nowhere.json"], ["."]])
def test_nothing_to_read_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "compare", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words[0] in error and "--out" in error


def test_help_and_compare_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from bnbench import cli;"
        f"sys.exit(cli.main(['bench', 'compare', {str(RESULTS)!r}]) or cli.main(['bench', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for theme in benchmarks.THEMES:
        assert f"\n    {theme} " in done.stdout or f"\n    {theme}\n" in done.stdout
