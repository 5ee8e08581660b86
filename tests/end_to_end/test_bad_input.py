"""A user's mistake is one line with the value, the rule and the way out; exit code 2; nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from bnbench import cli
from bnbench.compose import compose_jobs
from tests.end_to_end.commands import BNBENCH, NO_LOGGER, TINY, finish, records, run, start, train, tree

HAS_GPU = Path("/dev/nvidia0").exists()
SMALL = (*TINY, *NO_LOGGER)


def refused(
    capsys: pytest.CaptureFixture[str], words: list[str], *said: str, verb: str = "train", silent: bool = True
) -> str:
    """Assert that the command is refused in the one way, saying each of `said`; returns the line."""
    before = tree(Path.cwd())
    assert cli.main([verb, *words]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"bnbench {verb}: ")
    for text in said:
        assert text in lines[0]
    if silent:
        assert captured.out == ""
    assert tree(Path.cwd()) == before
    return lines[0]


# The words, then what the line must say: the value, the rule, the way out.
CONFIG_MISTAKES = {
    "unknown key": (["epoch=3"], ["unknown key 'epoch'", "known: name, dir, seed, epochs", "did you mean epochs?"]),
    "unknown group": (["nrom=bn"], ["unknown key 'nrom'", "did you mean norm?"]),
    "unknown nested key": (["norm.batchsize=2"], ["'norm.batchsize'", "norm.eps", "did you mean norm.batch_size?"]),
    "unknown key of a chosen group": (["data=cifar10", "data.rot=x"], ["'data.rot'", "did you mean data.root?"]),
    "unknown choice": (["norm=bnn"], ["unknown norm 'bnn'", "known: bn, brn, ", "did you mean bn?"]),
    "unknown model": (["model=resnet9"], ["unknown model 'resnet9'", "resnet8", "resnet56"]),
    "unknown experiment": (["experiment=quick"], ["'quick'", "did you mean quickstart?"]),
    "unknown value": (["data.augment=flips"], ["data.augment", "'flips'", "known: none, flip, crop, crop_flip"]),
    "unknown precision": (["trainer.precision=fp16"], ["'fp16'", "fp32, bf16, fp64"]),
    "key that nothing reads": (["+optim.nestrov=true"], ["optim.nestrov", "remove it"]),
    "word for a number": (["epochs=many"], ["epochs='many'", "integer"]),
    "fraction for an integer": (["epochs=1.5"], ["epochs=1.5", "integer"]),
    "truth value for an integer": (["epochs=true"], ["epochs=true", "integer"]),
    "no value": (["epochs="], ["epochs=''", "integer"]),
    "null for a group": (["norm=null"], ["norm=null", "known: bn, brn, "]),
    "zero epochs": (["epochs=0"], ["epochs=0", "at least 1"]),
    "negative seed": (["seed=-1"], ["seed=-1", "at least 0"]),
    "learning rate not a number": (["optim.lr=nan"], ["optim.lr=nan", "above 0"]),
    "infinite learning rate": (["optim.lr=inf"], ["optim.lr=inf"]),
    "long warmup": (["epochs=2", "optim.warmup_epochs=3"], ["warmup_epochs=3", "epochs=2", "lower it"]),
    "not key=value": (["epochs"], ["epochs", "key=value"]),
    "not key=value, with a space": (["epochs 3"], ["epochs 3", "key=value"]),
    "folder for a name": (["name=a/b"], ["name='a/b'", "letters, digits, -, _ and ."]),
    "batch against the world": (["global_batch=65"], ["global_batch=65", "the 2 ranks", "64, 66"]),
    "NBS between": (["norm.batch_size=24"], ["norm.batch_size=24", "32 images", "divide", "16, 32, 64"]),
    "NBS above all": (["norm.batch_size=128"], ["norm.batch_size=128", "32, 64"]),
    "NBS zero": (["norm.batch_size=0"], ["norm.batch_size=0", "below 1"]),
    "NBS of gn": (["norm=gn", "norm.batch_size=4"], ["norm.batch_size=4", "ignored", "norm=gn", "leave it out"]),
    "NBS of syncbn": (["norm=syncbn", "norm.batch_size=4"], ["norm.batch_size=4", "ignored", "use norm=bn"]),
    "base batch without a rule": (["optim.base_batch=32"], ["optim.base_batch=32", "ignored", "linear or sqrt"]),
    "rule without a base batch": (["optim.lr_rule=linear"], ["optim.lr_rule=linear", "optim.base_batch"]),
    "worlds of a run": (["hydra.launcher.worlds=2"], ["hydra/launcher", "read by a sweep only", "add -m"]),
    "no worlds": (["-m", "hydra.launcher.worlds=0"], ["hydra.launcher.worlds=0", "at least 1"]),
    "unknown key of the launcher": (["-m", "hydra.launcher.world=2"], ["did you mean hydra.launcher.worlds?"]),
    "no time for collectives": (["trainer.collective_timeout_minutes=0"], ["collective_timeout_minutes=0", "above 0"]),
    "another world, another NBS": (["trainer.resume_world=4"], ["there NBS was 16", "set norm.batch_size=16"]),
    "a bound below all losses": (["recipe.max_loss=0.0"], ["recipe.max_loss=0.0", "above 0"]),
    "groups of bn": (["norm.num_groups=4"], ["norm.num_groups=4", "ignored", "norm=bn", "leave it out"]),
    "NBS of frozen from the start": (
        ["norm=frozen", "norm.after=0", "norm.batch_size=4"],
        ["norm.batch_size=4", "ignored", "norm=frozen with norm.after=0", "has no NBS"],
    ),
    "frozen at the end": (["norm=frozen", "norm.after=1"], ["norm.after=1", "[0, 1)"]),
    "ghost without an NBS": (["norm=ghost"], ["norm=ghost", "below the per-device batch of 32", "1, 2, 4, 8, 16"]),
    "ghost of a whole batch": (["norm=ghost", "norm.batch_size=32"], ["norm.batch_size=32", "norm=ghost"]),
    "brn in fractions and steps": (
        ["norm=brn", "norm.r_end=100"],
        ["norm.warmup=0.04", "norm.r_end=100", "all as fractions of training", "whole steps"],
    ),
    "brn that ends before it begins": (
        ["norm=brn", "norm.warmup=0.25"],
        ["norm.d_end=0.2", "norm.warmup=0.25", "lower norm.warmup"],
    ),
    "placement of what includes the activation": (
        ["norm=frn", "norm.placement=after"],
        ["norm.placement=after", "norm=frn", "includes the activation"],
    ),
    "unknown placement": (["norm.placement=behind"], ["'behind'", "known: before, after"]),
    "momentum of gn": (["norm=gn", "norm.momentum=0.2"], ["norm.momentum=0.2", "gn reads num_groups, eps"]),
    "reference batch of bn": (["norm.reference_size=8"], ["norm.reference_size=8", "ignored", "norm=bn"]),
    "zero scale that is not there": (
        ["norm=none", "norm.init=zero_gamma", "norm.affine=false"],
        ["norm.init=zero_gamma", "norm.affine=true"],
    ),
    "no data folder given": (["data=image_folder"], ["data.root", "no value", "give data.root=", "train/"]),
    "missing data folder": (
        ["data=image_folder", "data.root=nowhere"],
        ["data.root=nowhere", "no train/ folder", "train/ and test/"],
    ),
    "data folder at home": (["data=image_folder", "data.root=~/nowhere"], [f"data.root={Path.home()}/nowhere has no"]),
    "sweep without -m": (["norm=bn,gn"], ["norm=bn,gn", "add -m"]),
    "experiment without -m": (["experiment=quickstart"], ["norm.batch_size", "add -m"]),
    "two nodes alone": (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun or srun", "num_nodes=1"]),
    "no config folder": (["--config-dir", "nowhere"], ["--config-dir nowhere"]),
    "unknown option": (["--frobnicate"], ["--frobnicate"]),
    "mistake in one job of a sweep": (["-m", "norm.batch_size=2,24"], ["norm.batch_size=24", "16, 32, 64"]),
    "mistake in the sweep's words": (["-m", "seed=0,1", "epohcs=2"], ["'epohcs'", "did you mean epochs?"]),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), CONFIG_MISTAKES.values(), ids=CONFIG_MISTAKES.keys())
def test_a_mistake_in_the_words_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    # Small, should it train after all; options come first, and the mistake has the last word.
    refused(capsys, [*words, *SMALL] if words[0].startswith("-") else [*SMALL, *words], *said)


def test_the_sweep_option_may_stand_anywhere(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused for its NBS, as with -m first, and not for the place of -m."""
    refused(capsys, [*SMALL, "-m", "norm.batch_size=24,48"], "norm.batch_size=24")


def test_an_unknown_wandb_mode_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    refused(capsys, [], "'nonsense'", "offline, online, disabled")


def test_an_unknown_verb_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        capsys,
        [],
        "unknown verb 'trian'",
        "train, plan, report, sync, scale, doctor",
        "did you mean train?",
        verb="trian",
    )


@pytest.mark.parametrize("folder", ["nowhere", "empty", "file"])
def test_a_report_on_nothing_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (workplace / "empty").mkdir()
    (workplace / "file").write_text("x")
    refused(capsys, [folder], folder, verb="report")


@pytest.mark.parametrize("folder", ["file", "file/below", "link"])
def test_a_file_in_the_way_of_the_output_is_named(
    workplace: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (workplace / "file").write_text("precious")
    (workplace / "link").symlink_to("nowhere")
    refused(capsys, [*SMALL, f"dir={folder}"], f"dir={folder}", "in the way", "choose another dir")


def test_a_temporary_folder_too_deep_for_sockets_is_named(workplace, monkeypatch, capsys):
    deep = workplace / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert cli.main(["train", *NO_LOGGER]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(deep) in line and "at most 72" in line and "TMPDIR=/tmp" in line
    assert not (workplace / "runs").exists()


def test_a_file_in_the_way_of_a_run_folder_is_named(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compose_jobs([*SMALL, "dir=out"])[0].folder
    folder.parent.mkdir()
    folder.write_text("precious")
    refused(capsys, [*SMALL, "dir=out"], folder.name, "dir=", silent=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.max_train=20000"], ["data.max_train=20000", "10376 images", "lower it"]),
        (["data.max_test=2001"], ["data.max_test=2001", "2000 images", "lower it"]),
        (["global_batch=256"], ["global_batch=256", "128 training images", "data.max_train"]),
        (
            ["norm=vbn", "norm.reference_size=129"],
            ["norm.reference_size=129", "128 training images", "lower it"],
        ),
        (["data.max_test=1"], ["1 test images", "2 ranks", "raise data.max_test"]),
        pytest.param(
            ["trainer.accelerator=gpu"],
            ["trainer.accelerator=gpu", "has 0 GPU(s)", "set trainer.accelerator=cpu"],
            marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_that_only_the_ranks_see_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    refused(capsys, [*SMALL, *words], *said, silent=False)


@pytest.fixture
def pictures(workplace: Path) -> Path:
    """train/ and test/ with two classes of six JPEGs each."""
    root = workplace / "pictures"
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (40 * i, 90 * number, 128)).save(folder / f"{i}.jpg")
    return root


FOLDER = ("data=image_folder", "data.root=pictures", "epochs=1", "optim.warmup_epochs=0", "global_batch=4")


def corrupt(pictures: Path) -> str:
    victim = pictures / "train" / "dog" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    return str(victim.relative_to(pictures.parent))


def test_an_image_folder_that_is_well_trains(workplace: Path, pictures: Path) -> None:
    """Else the refusals below could have another cause."""
    assert train(*FOLDER, *NO_LOGGER, "name=x") == 0
    (record,) = records(workplace / "runs")
    assert (
        record.provenance["data"] | {"train_images": 12, "test_images": 12, "classes": 2}
        == (record.provenance["data"])
    )


def test_a_corrupt_image_is_named(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = corrupt(pictures)
    refused(capsys, [*FOLDER, *NO_LOGGER], victim, "decode", "replace or remove it", silent=False)


def test_a_corrupt_image_ends_a_sweep_in_one_line(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = corrupt(pictures)
    before = tree(workplace)
    assert train("-m", *FOLDER, *NO_LOGGER, "seed=0,1", "name=x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert victim in lines[0] and "2 of 2 runs" in lines[0]
    # Hydra notes what was asked before the ranks look at the data; of the runs there is nothing.
    left = {"runs", "runs/x", "runs/x/multirun.yaml"}
    assert {path: content for path, content in tree(workplace).items() if path not in left} == before


def test_class_folders_that_differ_are_named(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "train" / "dog").rename(pictures / "train" / "hound")
    said = ["data.root=pictures", "train/ and test/ differ", "dog, hound"]
    refused(capsys, [*FOLDER, *NO_LOGGER], *said, silent=False)


def test_an_empty_class_folder_is_named(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (pictures / split / "emu").mkdir()
    refused(capsys, [*FOLDER, *NO_LOGGER], "emu", silent=False)


def test_a_sweep_keeps_what_is_sound(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", *SMALL, "global_batch=64,256", "name=x") == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "global_batch=256" in captured.err and "1 of 2 runs" in captured.err
    (record,) = records(workplace / "runs")
    assert record.status == "completed"
    assert "val. error" in captured.out  # the table of the one that ran


def test_cifar10_without_a_network_is_refused(workplace: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    command = [BNBENCH, "train", "data=cifar10", "epochs=1", *NO_LOGGER]
    done = finish(start(command, workplace, **proxies), seconds=60)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in ("data=cifar10", "data/cifar10", "could not be downloaded", "data=digits"):
        assert text in done.stderr
    assert tree(workplace) == {}


def test_help_comes_at_once(workplace: Path) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([BNBENCH, "train", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.5
    for text in (
        "norm=gn",
        "group normalization",
        "*resnet8 resnet14",
        "data=image_folder",
        "experiment=quickstart",
    ):
        assert text in done.stdout


def test_nothing_heavy_is_imported_to_help_or_to_refuse(workplace: Path) -> None:
    """`None` in sys.modules makes an import fail, were it only tried."""
    (workplace / "file").write_text("x")
    commands = [
        ["--help"],
        ["train", "--help"],
        ["train", "norm=bnn"],
        ["train", "norm.batch_size=24"],
        ["train", "-m", "norm.batch_size=2,24"],
        ["train", "dir=file"],
    ]
    code = (
        "import json, sys\n"
        "heavy = ('torch', 'lightning', 'wandb', 'torchvision')\n"
        "sys.modules.update(dict.fromkeys(heavy))\n"
        "from bnbench.cli import main\n"
        f"codes = [main(words) for words in {commands!r}]\n"
        "print(json.dumps(codes))\n"
    )
    done = run([sys.executable, "-c", code], cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 2, 2, 2, 2]
    assert set(tree(workplace)) == {"file"}
