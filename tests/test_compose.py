"""Words of a command line: checked before anything is imported or written, and answered in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bnbench.compose import at_home, compose_jobs, read_request
from bnbench.folders import check_output, config_folder
from bnbench.hydra_compose import Combinations, composed, ready

MISTAKES = [  # words, what the line names
    (["norm=bnn"], ["'bnn'", "bn, brn, custom"]),
    (["model=resnet9"], ["'resnet9'", "resnet8"]),
    (["data=mnist"], ["'mnist'", "digits"]),
    (["experiment=quikstart"], ["'quikstart'", "did you mean quickstart?"]),
    (["nrom=bn"], ["'nrom'", "did you mean norm?"]),
    (["norm.batchsize=2"], ["'norm.batchsize'", "did you mean norm.batch_size?"]),
    (["optim.learning_rate=1"], ["'optim.learning_rate'", "optim.lr"]),
    (["lr=0.1"], ["'lr'", "did you mean optim.lr?"]),
    (["optim.learning_rate=0.1"], ["did you mean optim.lr?"]),
    (["batch_size=32"], ["'batch_size'", "did you mean global_batch or norm.batch_size?"]),
    (["norm.nbs=4"], ["'norm.nbs'", "did you mean norm.batch_size?"]),
    (["devices=4"], ["did you mean trainer.devices?"]),
    (["momentum=0.9"], ["did you mean norm.momentum or optim.momentum?"]),
    (["seed=0-4"], ["seed=0-4", "one whole number", "-m 'seed=range(0,5)'"]),
    (["seed=[0,3]"], ["seed=[0, 3]", "-m 'seed=0,3'"]),
    (["experiment=images"], ["did you mean images_nbs?"]),
    (["experiment=nbs"], ["did you mean images_nbs?"]),
    (["experiment=small_batch"], ["known: images_nbs", "did you mean claims/small_batch?"]),
    (["experiment=wu_he"], ["did you mean protocols/wu_he_gn?"]),
    (["experiment=claims/small"], ["unknown experiment 'claims/small'", "did you mean claims/small_batch?"]),
    (["norm=BN"], ["did you mean bn?"]),
    (["optim.lr.x=1"], ["optim.lr"]),
    (["data.root=/x"], ["'data.root'", "data.max_train"]),
    (["data=cifar10", "data.roof=/x"], ["'data.roof'", "did you mean data.root?"]),
    (["+norm.typo=1"], ["norm.typo"]),
    (["+typo=1"], ["typo"]),
    (["model.options.width=8"], ["+model.options.NAME=VALUE"]),
    (["norm.options={width:8}"], ["+norm.options.NAME=VALUE"]),
    (["optim=lars"], ["optim.lr has no value"]),
    (["optim=adamw", "optim.betas=[0.9,1]"], ["optim.betas=[0.9, 1.0]", "[0, 1)"]),
    (["schedule=step", "schedule.milestones=[30,60]"], ["fractions of training"]),
    (["schedule=step", "schedule.gamma=null"], ["schedule.gamma has no value"]),
    (["schedule=range", "schedule.lr_end=0.1", "optim.warmup_epochs=0"], ["schedule.lr_end=0.1", "0.2"]),
    (["schedule=range"], ["optim.warmup_epochs=1 with schedule=range", "set optim.warmup_epochs=0"]),
    (["measure.test=true"], ["measure.test=true", "data.val_images"]),
    (["optim=lars", "optim.lr=1", "optim.weight_decay=0"], ["optim.weight_decay=0 with optim=lars"]),
    (["recipe.ema=1"], ["recipe.ema=1", "(0, 1)"]),
    (["recipe.label_smoothing=1.0"], ["recipe.label_smoothing=1.0"]),
    (["recipe.accumulate=0"], ["recipe.accumulate=0"]),
    (["recipe.clip_norm=-1.0"], ["recipe.clip_norm=-1.0"]),
    (["recipe.accumulate=5"], ["global_batch=64", "recipe.accumulate=5", "60, 70"]),
    (["evals_per_epoch=0"], ["evals_per_epoch=0"]),
    (["target_error=101"], ["target_error=101", "percent"]),
    (["claim=bn_is_great"], ["'bn_is_great'", "convergence"]),
    (["model.dropout=1.0"], ["model.dropout=1.0", "[0, 1)"]),
    (["model.residual=false", "model.preact=true"], ["model.residual=false", "model.preact=false"]),
    (["seed=a"], ["seed='a'", "integer"]),
    (["epochs=0"], ["epochs=0"]),
    (["global_batch=63"], ["global_batch=63", "62, 64"]),
    (["norm.batch_size=3"], ["norm.batch_size=3", "1, 2, 4"]),
    (["data=image_folder"], ["data.root", "train/ and test/"]),
    (["data=image_folder", "data.root=null"], ["data.root"]),
    (["data=image_folder", "data.root=/no/such/folder"], ["/no/such/folder", "train/"]),
    (["norm=null"], ["chooses nothing; known: bn, brn"]),
    (["~data"], ["data", "missing"]),
    (["~optim.lr"], ["optim.lr", "missing"]),
    (["dir=${nope}"], ["nope"]),
    (["a word"], ["a word", "key=value"]),
    (["name=[1"], ["key=value"]),
    (["norm"], ["'norm'", "no ="]),
    (["data=image_folder", "data.root=/tmp/bilderü"], ["""'data.root="/tmp/bilderü"'"""]),
    (["data.root=/ü,/b c(d)"], ["""'data.root="/ü","/b c(d)"'"""]),
    (["name=it's"], ["key=value"]),
    (["optim.lr=interval(0.1,0.2)"], ["optim.lr=interval(0.1,0.2)", "-m optim.lr=0.1,0.2"]),
    (["hydra.run.dir=X"], ["hydra.run.dir=X", "set dir=X instead"]),
    (["hydra.sweep.dir='my runs'"], ["set dir='my runs' instead"]),
    (["logger=wandb", "logger.mode=on"], ["'on'", "offline, online, disabled"]),
]


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_what_is_known(words, named):
    with pytest.raises(ValueError, match=r"\S") as caught:
        compose_jobs(words, False)
    message = str(caught.value)
    assert "\n" not in message
    for name in named:
        assert name in message


def test_the_home_folder_is_meant_where_a_shell_leaves_its_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of a user")
    given = ["data.root=~/x", "data.root=~/a,~/b", "dir='~/x y'", "~optim.lr", "name=a~/b", "-m"]
    home = ["data.root=/home/of a user/x", "data.root=/home/of a user/a,/home/of a user/b"]
    assert at_home(given) == [*home, "dir='/home/of a user/x y'", *given[3:]]
    with pytest.raises(ValueError, match=r"data\.root=/home/of a user/x has no train/"):
        compose_jobs(["data=image_folder", *at_home(given[:1])])


def test_a_tree_with_val_in_place_of_test_is_told_what_reads_it(tmp_path):
    for folder in ("train/a", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"has val/ and no test/ folder.*rename val/, or set data=streamed_folder"
    ):
        compose_jobs(["data=image_folder", f"data.root={tmp_path}"])
    compose_jobs(["data=streamed_folder", f"data.root={tmp_path}"])


@pytest.mark.parametrize(
    "words", [["norm=bn,bnn"], ["seed=0,a"], ["norm.batchsize=2,4"], ["global_batch=64,63"]]
)
def test_a_mistake_in_one_run_of_a_sweep_stops_all_of_it(words):
    with pytest.raises(ValueError, match=r"^(?=.*(bnn|'a'|batchsize|63))[^\n]+$"):
        compose_jobs(words, True)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim.lr=interval(0.1,0.2)", "give values: -m optim.lr=0.1,0.2"),
        ("hydra.sweep.dir=X", "set dir=X instead"),
        ("hydra.sweep.dir=X,Y", "set dir=... instead"),
        ("norm=glob(zz*)", "gives no value; known: bn, brn"),
        ("seed=glob(*)", "seed=glob(*) gives no value"),
        ("seed=range(5,0)", "seed=range(5,0) gives no value"),
    ],
)
def test_a_sweep_that_cannot_be_tried_is_one_line(word, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        compose_jobs([word], True)
    assert "\n" not in str(caught.value)


def test_a_glob_is_the_choices_of_a_group_also_of_a_users_own_folder(tmp_path):
    globbed = compose_jobs(["norm=glob([b*,gn],exclude=brn)", "seed=0,1"], True)
    assert globbed == compose_jobs(["norm=bn,gn", "seed=0,1"], True)
    for name in ("mine_a", "mine_b"):
        (tmp_path / "schedule").mkdir(exist_ok=True)
        (tmp_path / "schedule" / f"{name}.yaml").write_text("name: cosine\n")
    mine = read_request(["schedule=glob(mine_*)"], True, str(tmp_path))
    assert [job.words for job in mine.jobs] == [["schedule=mine_a"], ["schedule=mine_b"]]


def test_an_experiments_own_interval_is_refused_in_one_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      optim.lr: interval(0.1,0.2)\n"
    )
    with pytest.raises(ValueError, match=r"give values: -m optim\.lr=0\.1,0\.2"):
        read_request(["experiment=mine"], True, str(tmp_path))


def test_a_later_word_wins_and_a_group_choice_keeps_the_keys():
    (job,) = compose_jobs(["norm=gn", "seed=3", "seed=4", "norm.num_groups=4", "name=mine"], False)
    assert (job.norm.name, job.norm.num_groups, job.seed, job.dir) == ("gn", 4, 4, "runs/mine")


def test_a_multirun_is_the_product_in_order():
    jobs = compose_jobs(["norm=bn,gn", "seed=0,1,2", "epochs=2"], True)
    assert [(job.norm.name, job.seed) for job in jobs] == [(n, s) for n in ("bn", "gn") for s in range(3)]
    assert {job.epochs for job in jobs} == {2}
    assert compose_jobs(["seed=range(0,3)"], True) == compose_jobs(["seed=0,1,2"], True)
    assert compose_jobs(["seed=5"], True) == compose_jobs(["seed=5"], False)


def test_an_experiment_brings_its_defaults_and_gives_way_to_words():
    jobs = compose_jobs(["experiment=quickstart"], True)
    cells = {(job.kind, job.nbs) for job in jobs}
    assert cells == {("bn", 2), ("bn", 4), ("bn", 16), ("bn", 64), ("gn", None)}
    assert {job.seed for job in jobs} == {0, 1, 2}
    assert {job.name for job in jobs} == {"quickstart"}
    more = compose_jobs(["experiment=quickstart", "name=mine", "seed=3,4", "norm=bn"], True)
    wanted = {(nbs, seed) for nbs in (2, 4, 16, 64) for seed in (3, 4)}
    assert {(job.nbs, job.seed) for job in more} == wanted
    assert len(more) == 8
    assert {job.dir for job in more} == {"runs/mine"}


@pytest.mark.parametrize(
    "words", [["seed=0,1"], ["experiment=quickstart"], ["norm=bn,gn"], ["seed=range(3)"]]
)
def test_several_values_want_a_sweep(words):
    with pytest.raises(ValueError, match="add -m"):
        compose_jobs(words, False)


@pytest.mark.parametrize(
    "words",
    [
        ["norm=bn", "norm.batch_size=4", "seed=1"],
        ["optim.lr=0.5", "optim=adamw", "optim.weight_decay=0"],
        ["norm.batch_size=4", "norm.batch_size=8", "norm=gn", "norm.num_groups=2"],
        ["experiment=claims/small_batch", "norm=gn", "seed=7", "epochs=2"],
        [
            "model=custom",
            "model.name=my.net",
            "+model.options.width=3",
            "model.options.width=4",
            "name='a, b'",
        ],
        ["data.max_train=null", "logger.tags=[a,b]", "trainer.devices=2", "~measure.landscape"],
        ["hydra/launcher=slurm", "hydra.launcher.array_parallelism=2", "name=${model.name}", "seed=3"],
        ["norm.batchsize=4", "seed=1"],
        ["norm=nope", "seed=1"],
        ["seed.more=1"],
        ["optim=null", "seed=2"],
    ],
    ids=" ".join,
)
def test_a_combination_is_composed_as_hydra_does(words):
    """Though its values are put into a copy of what its choices make."""

    def outcome(compose, words):
        try:
            return OmegaConf.to_container(compose(words), resolve=False)
        except ValueError as error:
            return str(error)

    combinations = Combinations()
    with ready(None):
        outcome(combinations.composed, [*words, "global_batch=8"])  # leaves nothing behind
        found = outcome(combinations.composed, words)
        assert found == outcome(composed, words)


def test_every_file_of_conf_composes(tmp_path):
    for split in ("train", "test", "val"):
        (tmp_path / split).mkdir()
    seen = 0
    for path in sorted(config_folder().glob("*/**/*.yaml")):
        group = path.parent.relative_to(config_folder()).as_posix()
        if group.partition("/")[0] == "experiment":
            continue  # tests/end_to_end/test_experiments.py composes them
        words = [f"{group}={path.stem}"]
        words += (
            [f"data.root={tmp_path}"] if path.stem in ("image_folder", "streamed_folder", "imagenet") else []
        )
        words += ["norm.batch_size=2"] if path.stem == "ghost" else []
        words += ["optim.lr=1.0", "epochs=5"] if path.stem == "lars" else []
        words += ["optim.warmup_epochs=0"] if path.stem == "range" else []
        words += ["data=synthetic", "data.image_size=299"] if group == "model" else []
        words += [f"{group}.name=bnbench.norms.anything"] if path.stem == "custom" else []
        jobs = compose_jobs(words, False)
        assert jobs, path
        if group in ("model", "norm", "data", "optim", "logger") and path.stem != "custom":
            assert getattr(jobs[0], group).name == path.stem, "a file is found by what it says it is"
        seen += 1
    assert seen >= 15


@pytest.mark.parametrize("folder", ["conf", "my conf", "a,b", "k=v", "run[1]", "it's"])
def test_a_users_own_experiment_is_found_wherever_it_lies(tmp_path, folder):
    mine = tmp_path / folder / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "# @package _global_\ndefaults:\n  - override /norm: gn\nname: mine\nepochs: 2\n"
        "hydra:\n  sweeper:\n    params:\n      seed: 5,6\n"
    )
    jobs = read_request(["experiment=mine"], True, str(tmp_path / folder)).runs
    assert [(job.norm.name, job.seed, job.epochs, job.dir) for job in jobs] == [
        ("gn", 5, 2, "runs/mine"),
        ("gn", 6, 2, "runs/mine"),
    ]


def test_a_config_folder_that_is_none_is_named():
    with pytest.raises(ValueError, match="/no/such is no folder"):
        read_request([], False, "/no/such")


def test_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for folder in ("file", "file/below/it", "dangling", "dangling/below"):
        with pytest.raises(ValueError, match="in the way: remove it or choose another dir") as caught:
            check_output(str(tmp_path / folder))
        assert str(tmp_path / folder.split("/")[0]) in str(caught.value)
    before = sorted(tmp_path.iterdir())
    check_output(str(tmp_path / "new" / "deeper"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_output_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="not writable"):
            check_output(str(tmp_path / "new"))
    finally:
        tmp_path.chmod(0o700)


def test_composing_imports_nothing_heavy_and_writes_nothing(tmp_path):
    code = """
import sys
from bnbench.compose import compose_jobs
from bnbench.hydra_compose import Combinations, composed, ready
from bnbench.folders import check_output, config_folder
from bnbench.sweep.plan import plan_sweep
jobs = compose_jobs(["experiment=quickstart"], True)
plan_sweep(jobs)
check_output(jobs[0].dir)
try:
    compose_jobs(["norm=bnn"], False)
except ValueError:
    print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    assert "hydra" in modules
    assert not {"torch", "torchvision", "lightning", "wandb", "sklearn"} & set(modules)
    assert list(tmp_path.iterdir()) == []


def test_the_installed_conf_is_the_checkouts():
    assert config_folder() == Path(__file__).parents[1] / "conf"
