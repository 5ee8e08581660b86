"""What defines a run, and what a user may not ask for."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from bnbench import catalog
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig, from_mapping
from bnbench.config.data import IMAGES, _listing_digest
from bnbench.config.run import LISTS
from bnbench.folders import config_folder
from bnbench.records import cell_of, digest


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return compose_jobs(["norm=bn", "trainer.devices=2", "global_batch=64"], multirun=False)[0]


def _with(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with some keys set (`optim__lr` for optim.lr), checked as if composed."""
    values = copy.deepcopy(dataclasses.asdict(config))
    for key, value in changes.items():
        node, (*path, last) = values, key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return from_mapping(values)


def test_a_run_survives_being_written_down(base):
    assert from_mapping(dataclasses.asdict(base)) == base


def test_where_and_how_a_run_is_kept_is_no_part_of_it(base):
    moved = _with(
        base,
        name="other",
        dir="/elsewhere",
        logger={"name": "none"},
        data__title="Digits of mine",
        trainer__log_every=1,
        trainer__threads=1,
        trainer__accelerator="cpu",
        trainer__save_weights=False,
    )
    assert moved != base
    assert moved.identity() == base.identity()
    assert moved.folder.name == base.folder.name
    assert str(moved.folder.parent) == "/elsewhere"


CHANGES = {
    "seed": 1,
    "epochs": 4,
    "global_batch": 32,
    "model__name": "resnet14",
    "model__width": 8,
    "model__preact": True,
    "norm__batch_size": 4,
    "norm__eps": 1e-3,
    "norm__momentum": 0.2,
    "norm__statistics": "rank0",
    "data__augment": "crop",
    "data__max_train": 128,
    "data__mean": [0.5, 0.5, 0.5],
    "optim__lr": 0.3,
    "optim__weight_decay": 0.0,
    "optim__decay_norm": False,
    "optim__warmup_epochs": 0,
    "trainer__devices": 1,
    "trainer__precision": "fp64",
}


def test_each_choice_makes_another_run(base):
    runs = [base, *(_with(base, **{key: value}) for key, value in CHANGES.items())]
    names = {run.folder.name: run for run in runs}
    assert len(names) == len(runs)


def test_only_the_seed_leaves_the_cell(base):
    other = _with(base, seed=1)
    assert other.identity() != base.identity()
    assert cell_of(other.identity()) == cell_of(base.identity())


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_syncbn_is_bn_over_the_world(base, devices):
    world = _with(base, trainer__devices=devices, norm__batch_size=64)
    sync = _with(base, trainer__devices=devices, norm__name="syncbn")
    assert sync.identity() == world.identity()
    assert sync.span == world.span
    assert sync.run_name == world.run_name == "resnet8-bn-nbs64-s0"


def test_no_batch_size_is_the_per_device_one(base):
    assert base.norm.batch_size is None
    assert base.identity() == _with(base, norm__batch_size=32).identity()
    assert base.run_name == "resnet8-bn-nbs32-s0"


def test_one_number_is_one_identity_however_it_is_written(base):
    """`optim.lr=1` and `optim.lr=1.0` are one run: JSON would tell them apart."""
    for key in ("optim__lr", "norm__momentum", "optim__warmup_epochs"):
        assert digest(_with(base, **{key: 1}).identity()) == digest(_with(base, **{key: 1.0}).identity())
    whole = _with(base, data__std=[1, 1, 1])
    assert digest(whole.identity()) == digest(_with(base, data__std=(1.0, 1.0, 1.0)).identity())


def _norm(words: str) -> RunConfig:
    return compose_jobs([f"norm={words.split()[0]}", *words.split()[1:]], multirun=False)[0]


BAD_NORMS = [  # the norm and what is set, what the message says
    ("brn norm.r_max=0.5", "norm.r_max=0.5 must be a finite number at least 1"),
    ("brn norm.d_max=-1", "norm.d_max=-1"),
    ("brn norm.warmup=-0.1", "norm.warmup=-0.1"),
    ("brn norm.r_end=0.01", "norm.r_end=0.01 comes before norm.warmup=0.04"),
    ("brn norm.warmup=100 norm.r_end=90 norm.d_end=200", "norm.r_end=90 comes before norm.warmup=100"),
    ("brn norm.warmup=10.5 norm.r_end=90 norm.d_end=90", "whole steps"),
    ("brn norm.warmup=null", "norm.warmup has no value"),
    ("vbn norm.reference_size=0", "norm.reference_size=0"),
    ("frozen norm.after=-0.5", r"norm.after=-0.5 is a fraction"),
    ("frn norm.learn_eps=null", "norm.learn_eps has no value"),
    ("none norm.init=orthogonal", "none, zero_gamma, fixup"),
    ("evonorm_s0 norm.placement=after", "includes the activation"),
    ("evonorm_b0 norm.placement=after", "includes the activation"),
    ("ghost norm.batch_size=5", "norm.batch_size=5"),
    ("ghost norm.batch_size=64", "norm=ghost must lie below"),
]


@pytest.mark.parametrize(("words", "said"), BAD_NORMS, ids=[words for words, _ in BAD_NORMS])
def test_a_bad_setting_of_a_norm_is_one_line(words, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        _norm(words)
    assert "\n" not in str(caught.value)


def test_ghost_is_bn_below_a_device():
    ghost, bn = _norm("ghost norm.batch_size=8"), _norm("bn norm.batch_size=8")
    assert ghost.identity() == bn.identity()
    assert (ghost.span, ghost.run_name, ghost.kind) == (bn.span, bn.run_name, "bn")


def test_each_setting_of_each_norm_makes_another_run():
    """Of those that it reads; what it does not read changes nothing."""
    others: dict[str, Any] = {
        "momentum": 0.37, "eps": 1e-2, "num_groups": 3, "statistics": "rank0", "r_max": 2.5, "d_max": 4.5,
        "warmup": 0.02, "r_end": 0.6, "d_end": 0.6, "reference_size": 7, "after": 0.3, "learn_eps": True,
        "affine": False, "init": "none", "batch_size": 8,
    }  # fmt: skip
    for name, info in catalog.NORMS.items():
        base = _norm("ghost norm.batch_size=4" if name == "ghost" else name)
        for key, value in others.items():
            changed = _with(base, **{f"norm__{key}": value})
            assert (changed.identity() != base.identity()) == (key in info.uses), (name, key)
            assert (f"norm.{key}" in changed.ignored()) == (key not in info.uses), (name, key)


def test_every_key_of_every_norm_can_be_swept_beside_bn():
    keys = {key for info in catalog.NORMS.values() for key in info.uses}
    composed = OmegaConf.load(config_folder() / "config.yaml").norm
    assert set(composed) == keys | {"placement"}
    assert {key for key, value in composed.items() if value is not None} == {"placement"}


def test_placement_is_part_of_the_run():
    assert _norm("gn").identity()["norm"]["placement"] == "before"
    assert _norm("gn norm.placement=after").folder != _norm("gn").folder


def test_frozen_from_the_start_has_no_nbs_and_reads_no_tracking():
    frozen = _norm("frozen norm.after=0")
    assert frozen.nbs is None
    assert frozen.run_name == "resnet8-frozen-s0"
    assert frozen.ignored() == {}
    other = _norm("frozen norm.after=0 norm.momentum=0.3 norm.statistics=rank0")
    assert other.identity() == frozen.identity()
    given = _norm("frozen norm.after=0 norm.batch_size=4")
    assert given.ignored() == {"norm.batch_size": 4}
    assert given.without_ignored() == frozen
    assert _norm("frozen norm.batch_size=4").nbs == 4


def test_a_node_is_a_span_by_name():
    """Two make-believe nodes of two ranks; a single node is the world."""
    nodes = ["trainer.devices=2", "trainer.num_nodes=2", "global_batch=64"]
    by_nbs = {
        nbs: compose_jobs([*nodes, f"norm.batch_size={nbs}"], False)[0].span.kind for nbs in (8, 16, 32, 64)
    }
    assert by_nbs == {8: "ghost", 16: "device", 32: "node", 64: "world"}
    (alone,) = compose_jobs(["trainer.devices=4", "norm.batch_size=32"], False)
    assert alone.span.kind == "group"


def test_what_a_norm_ignores_is_no_part_of_the_run(base):
    plain = _with(base, norm={"name": "gn", "num_groups": 8, "eps": 1e-5})
    full = _with(plain, norm__batch_size=4, norm__momentum=0.3, norm__statistics="rank0")
    assert set(full.ignored()) == {"norm.batch_size", "norm.momentum", "norm.statistics"}
    assert full.without_ignored() == plain
    assert full.identity() == plain.identity()
    assert plain.ignored() == {}
    assert plain.run_name == "resnet8-gn-s0"


def test_what_a_recipe_ignores_is_no_part_of_the_run(base):
    """A learning rate that follows no rule has no batch that it is meant for."""
    full = _with(base, optim__base_batch=128)
    assert full.ignored() == {"optim.base_batch": 128}
    assert full.without_ignored() == base
    assert full.identity() == base.identity()
    assert _with(base, optim__base_batch=64, optim__lr_rule="sqrt").ignored() == {}


@pytest.mark.parametrize(
    ("norm", "key"), [("bn", "statistics"), ("bn", "momentum"), ("bn", "eps"), ("gn", "num_groups")]
)
def test_a_norms_missing_setting_is_refused_or_the_default(norm, key):
    """`norm.statistics=null` trains what `mean` trains: it must not be another run."""
    default = compose_jobs([f"norm={norm}"], multirun=False)[0]
    identity, message = None, ""
    try:
        identity = _with(default, **{f"norm__{key}": None}).identity()
    except ValueError as error:
        message = str(error)
    assert identity == default.identity() or f"norm.{key}" in message


def test_a_folder_is_known_by_its_files_not_by_its_path(base, tmp_path):
    def run(root: str, *files: str) -> RunConfig:
        for file in files:
            (tmp_path / root / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / file).touch()
        data = {"name": "image_folder", "root": str(tmp_path / root), "image_size": 32}
        return _with(base, data=data)

    first = run("a", "train/x/1.png", "test/x/2.png")
    again = run("b", "test/x/2.png", "train/x/1.png")
    other = run("c", "train/x/1.png", "test/x/3.png")
    assert first.identity() == again.identity() != other.identity()
    # What a desktop leaves behind is no image; nor does a folder have classes that it has not.
    (tmp_path / "a/train/x/.DS_Store").touch()
    _listing_digest.cache_clear()
    assert run("a").identity() == first.identity()
    with pytest.raises(ValueError, match=r"data\.num_classes=3, but data=image_folder at .* has 1 classes"):
        _with(run("a"), data__num_classes=3)


def test_images_are_what_torchvision_takes_for_them():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMAGES) == set(IMG_EXTENSIONS)


def test_what_a_number_of_the_record_is_asked_with_is_a_part_of_the_run(base):
    """Else one run would answer for another target, and be compared with runs of it."""
    target = _with(base, target_error=30.0)
    assert target.identity() != base.identity()
    assert target.identity() != _with(base, target_error=20.0).identity()
    assert target.identity() != _with(target, evals_per_epoch=2).identity()
    assert base.identity() == _with(base, evals_per_epoch=2).identity()
    ranged = _with(base, schedule={"name": "range", "lr_end": 10.0}, optim__warmup_epochs=0.0)
    assert ranged.identity() != _with(ranged, trainer__log_every=3).identity()


HUGE = 2**64  # torch takes seeds below it
BAD = [  # key, value, what the message says besides both
    ("name", "a/b", "names a folder"),
    ("name", "..", "names a folder"),
    ("name", "", "names a folder"),
    ("seed", -1, "at least 0"),
    ("seed", HUGE, ""),
    ("seed", "one", "valid integer"),
    ("epochs", 0, "a whole number of at least 1"),
    ("epochs", 1.5, "valid integer"),
    ("global_batch", 0, "a whole number of at least 1"),
    ("global_batch", 63, "divisible by the 2 ranks"),
    ("model.name", "resnet9", "resnet8, resnet14"),
    ("model.width", 0, "a whole number of at least 1"),
    ("model.stem_stride", -1, "a whole number of at least 1"),
    ("norm.name", "bnn", "bn, syncbn, ghost"),
    ("norm.batch_size", 3, "possible here: 1, 2, 4"),
    ("norm.batch_size", 48, "possible here: 1, 2, 4"),
    ("norm.batch_size", 0, "below 1"),
    ("norm.statistics", "median", "mean, rank0"),
    ("norm.momentum", 0, "(0, 1]"),
    ("norm.momentum", 1.5, "(0, 1]"),
    ("norm.eps", 0, "above 0"),
    ("norm.eps", float("inf"), ""),
    ("norm.num_groups", 0, "a whole number of at least 1"),
    ("norm.placement", "behind", "before, after"),
    ("data.name", "mnist", "digits, image_folder, cifar10"),
    ("data.augment", "flips", "none, flip, crop, crop_flip"),
    ("data.max_train", 0, "a whole number of at least 1"),
    ("data.max_test", -5, "a whole number of at least 1"),
    ("data.std", [0.2, 0, 0.2], "positive"),
    ("data.std", [0.2, float("nan"), 0.2], ""),
    ("data.mean", [0.2, float("inf"), 0.2], ""),
    ("data.mean", [0.5], "three numbers"),
    ("data.mean", 0.5, "three numbers, such as [0.49"),
    ("data.std", [1.0, 1.0, 1.0, 1.0], "three numbers"),
    ("optim.betas", 0.9, "two numbers"),
    ("schedule.milestones", 0.5, "numbers, such as [0.5"),
    ("logger.tags", "mine", "words, such as [a,b]"),
    ("data.workers", -1, "a whole number of at least 0"),
    ("data.title", " ", "one line"),
    ("data.title", 81 * "a", "80 characters"),
    ("optim.name", "adam", "sgd"),
    ("optim.lr", 0, "above 0"),
    ("optim.lr", float("nan"), ""),
    ("optim.lr", float("inf"), ""),
    ("optim.lr_rule", "cubic", "none, linear, sqrt"),
    ("optim.base_batch", 0, "a whole number of at least 1"),
    ("optim.momentum", 1, "[0, 1)"),
    ("optim.nesterov", "maybe", "boolean"),
    ("optim.weight_decay", -1e-4, "at least 0"),
    ("optim.weight_decay", float("inf"), ""),
    ("optim.warmup_epochs", -1, "at least 0"),
    ("optim.warmup_epochs", 99, "longer than epochs"),
    ("trainer.accelerator", "tpu", "auto, cpu, gpu"),
    ("trainer.devices", 0, "a whole number of at least 1"),
    ("trainer.num_nodes", 0, "a whole number of at least 1"),
    ("trainer.precision", "fp16", "fp32, bf16, fp64"),
    ("trainer.threads", 0, "a whole number of at least 1"),
    ("trainer.log_every", 0, "a whole number of at least 1"),
    ("trainer.checkpoint_minutes", float("inf"), "or null"),
    ("trainer.checkpoint_minutes", -1.0, "or null"),
    ("trainer.time_limit_minutes", float("inf"), "or null"),
    ("trainer.time_limit_minutes", float("nan"), "or null"),
    ("trainer.time_limit_minutes", 0.0, "above 0, or null"),
    ("logger.name", "tensorboard", "wandb, none"),
    ("logger.mode", "maybe", "offline, online, disabled"),
]


@pytest.mark.parametrize(("key", "value", "rule"), BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_a_bad_value_is_one_line_with_the_key_and_the_rule(base, key, value, rule):
    with pytest.raises(ValueError, match=r"\S") as caught:
        _with(base, **{key.replace(".", "__"): value})
    message = str(caught.value)
    assert message.count("\n") == 0
    assert key.removesuffix(".name") in message
    assert rule in message
    if not isinstance(value, list):
        assert str(value) in message


@pytest.mark.parametrize("key", ["optim.lr", "seed"])
def test_what_has_no_value_is_called_as_it_is_written(base, key):
    with pytest.raises(ValueError, match=f"^{key}=null: input should be a valid"):
        _with(base, **{key.replace(".", "__"): None})


def test_every_key_that_takes_a_list_has_its_form_told(base):
    values = dataclasses.asdict(base)
    for part in ("data", "optim", "schedule", "logger", "model", "norm", "trainer", "recipe", "measure"):
        for field in dataclasses.fields(getattr(base, part)):
            assert ("tuple" in str(field.type)) == (f"{part}.{field.name}" in LISTS), field
    assert {key.partition(".")[0] for key in LISTS} <= set(values)


@pytest.mark.parametrize(("group", "other"), [("model", "resnet8"), ("norm", "gn")])
def test_a_users_own_in_place_of_another_choice_is_told_how_it_is_chosen(group, other):
    words = [f"{group}={other}", f"{group}.name=tests.records_factory.anything"]
    said = f"{words[1]} is your own {group}: choose {group}=custom with it (in a sweep with others: a second command"
    with pytest.raises(ValueError, match=re.escape(said)):
        compose_jobs(words)
    with pytest.raises(ValueError, match=re.escape(said)):
        compose_jobs([f"{group}={other},custom", words[1]], multirun=True)


@pytest.mark.parametrize("title", ["two\nlines", "a bell\a"])
def test_a_title_is_one_printable_line_and_for_no_data_that_have_a_label(base, title):
    with pytest.raises(ValueError, match=r"^data\.title='.*\\.*' must be one line of 1 to 80 characters"):
        _with(base, data__title=title)
    synthetic = {
        "name": "synthetic",
        "image_size": 32,
        "num_classes": 10,
        "train_images": 64,
        "test_images": 64,
    }
    with pytest.raises(ValueError, match=r"data\.title=mine would be ignored: .* call data=synthetic 'synth"):
        _with(base, data=synthetic | {"title": "mine"})


@pytest.mark.parametrize("value", [float("inf"), [1.0, float("nan")]])
def test_what_no_record_could_hold_is_refused_before_training(base, value):
    with pytest.raises(ValueError, match=r"^norm\.options\.x=.* finite numbers") as caught:
        _with(base, norm__options={"x": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_a_rule_needs_the_batch_it_starts_from(base, rule):
    with pytest.raises(ValueError, match=rf"optim\.lr_rule={rule}.*give optim\.base_batch"):
        _with(base, optim__lr_rule=rule, optim__base_batch=None)


def test_nesterov_needs_momentum(base):
    with pytest.raises(ValueError, match="nesterov=false"):
        _with(base, optim__momentum=0)
    assert _with(base, optim__momentum=0, optim__nesterov=False)


@pytest.mark.parametrize("key", ["root", "image_size"])
def test_an_image_folder_without_its_folder_is_a_users_mistake(base, tmp_path, key):
    """`data.root=null` on the command line; an assertion would end in an empty line."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    data = {"name": "image_folder", "root": str(tmp_path), "image_size": 32} | {key: None}
    with pytest.raises(ValueError, match=rf"data\.{key}"):
        _with(base, data=data)


def test_cifar10_without_a_folder_is_a_users_mistake(base):
    with pytest.raises(ValueError, match=r"data\.root"):
        _with(base, data={"name": "cifar10", "root": None, "download": True})


@pytest.mark.parametrize(
    ("section", "word"),
    [("norm", "norm.typo"), ("optim", "optim.typo"), (None, "typo"), ("data", "data.typo")],
)
def test_a_key_that_nothing_reads_is_named(base, section, word):
    with pytest.raises(ValueError, match=rf"^{word} ") as caught:
        _with(base, **{f"{section}__typo" if section else "typo": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("section", "key"), [(None, "seed"), ("optim", "lr"), ("model", "name")])
def test_a_key_that_is_missing_is_named(base, section, key):
    values = dataclasses.asdict(base)
    del (values[section] if section else values)[key]
    with pytest.raises(ValueError, match=rf"^{f'{section}.' if section else ''}{key} is missing"):
        from_mapping(values)


def test_users_mistakes_are_found_without_assertions():
    """`python -O` drops `assert`, which is for our own mistakes."""
    code = (
        "from bnbench.compose import compose_jobs\n"
        "try:\n    compose_jobs(['norm.batch_size=3'], False)\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("norm.batch_size=3 "), done.stdout + done.stderr


def test_learning_rate_rules(base):
    """At the base batch all rules agree; linear is proportional, sqrt its root, none constant."""
    for rule, power in {"none": 0, "sqrt": 0.5, "linear": 1}.items():
        optim = _with(base, optim__lr_rule=rule, optim__lr=0.2, optim__base_batch=64).optim
        assert optim.peak_lr(64) == 0.2
        for global_batch in (16, 256):
            assert optim.peak_lr(global_batch) == pytest.approx(0.2 * (global_batch / 64) ** power, rel=1e-12)
