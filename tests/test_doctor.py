"""`bnbench doctor` answers on every machine, and tells no secret."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from bnbench import doctor

NMS = "operator torchvision::nms does not exist"


def break_import(monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception) -> None:
    real = importlib.import_module

    def fake(name: str, package: str | None = None) -> types.ModuleType:
        if name == broken:
            raise error
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", fake)


def test_without_torch_it_still_answers_and_names_the_extra(tmp_path: Path) -> None:
    # A process of its own, where neither the module nor the metadata of what trains can be found.
    code = """
import importlib.abc, importlib.metadata, sys
GONE = ("torch", "torchvision", "lightning", "wandb", "sklearn", "hydra", "omegaconf")
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
real = importlib.metadata.version
def version(name):
    if name in (*GONE, "scikit-learn", "hydra-core"):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
from bnbench.doctor import main
sys.exit(main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "pip install '.[train]' in bnbench's checkout" in done.stdout
    assert "Training cannot run here yet." in done.stdout
    assert "runs/" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_nms_error_is_explained_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "torchvision", RuntimeError(NMS))
    check = doctor.check_import("torchvision")
    assert check.state == "missing"
    assert NMS in check.detail
    assert "CPU-only torch" in check.remedy
    assert "install" in check.remedy
    assert "'torch" in check.remedy
    assert "'torchvision" in check.remedy


def test_a_torch_that_cannot_be_loaded_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "torch", OSError("libcudart.so.13: cannot open shared object file"))
    check = doctor.check_import("torch")
    assert check.state == "missing"
    assert "libcudart" in check.detail
    assert check.remedy


def test_a_version_below_the_bound_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "1.0")
    check = doctor.check_package("torch")
    assert check.state == "missing"
    assert ">=" in check.detail


def fake_torch(available: bool, cuda: str | None) -> types.SimpleNamespace:
    def is_available() -> bool:
        if not available:
            warnings.warn("CUDA initialization: the driver is too old\nmore", stacklevel=1)
        return available

    card = types.SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    return types.SimpleNamespace(
        version=types.SimpleNamespace(cuda=cuda),
        cuda=types.SimpleNamespace(
            is_available=is_available, device_count=lambda: 2, get_device_properties=lambda i: card
        ),
    )


def test_gpus_are_named_and_their_absence_explained() -> None:
    check = doctor.check_cuda(fake_torch(True, "13.2"))
    assert check.state == "ok"
    assert check.detail.count("NVIDIA H100 (80 GiB)") == 2
    old_driver = doctor.check_cuda(fake_torch(False, "13.2"))
    assert (old_driver.state, old_driver.detail) == ("note", "CUDA initialization: the driver is too old")
    assert "without CUDA" in doctor.check_cuda(fake_torch(False, None)).detail


def test_an_unsupported_python_is_missing() -> None:
    assert doctor.check_python((3, 10)).state == "missing"
    assert doctor.check_python((3, 12)).state == "ok"


def test_a_file_in_the_way_of_runs_is_missing(tmp_path: Path) -> None:
    assert doctor.check_runs(tmp_path).state == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("")
    check = doctor.check_runs(tmp_path)
    assert check.state == "missing"
    assert "in the way" in check.detail
    assert "dir=" in check.remedy


def test_a_folder_that_takes_no_file_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", read_only)
    check = doctor.check_runs(tmp_path)
    assert check.state == "missing"
    assert "Read-only file system" in check.detail


def test_wandb_mode_and_login_decide(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert doctor.check_wandb_login(home).state == "ok"
    assert doctor.check_wandb_login(home | {"WANDB_MODE": "online"}).state == "missing"
    assert doctor.check_wandb_login(home | {"WANDB_MODE": "on"}).state == "missing"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password sesame\n")
    check = doctor.check_wandb_login(home | {"WANDB_MODE": "online"})
    assert check.state == "ok"
    assert ".netrc" in check.detail


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_secret_is_printed(
    options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key-sesame")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password netrc-sesame\n")
    monkeypatch.chdir(tmp_path)
    doctor.main(options)
    printed = capsys.readouterr()
    assert "sesame" not in printed.out + printed.err
    assert "WANDB_API_KEY" in printed.out


def test_json_says_the_same_as_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for blocked in (False, True):
        if blocked:
            (tmp_path / "runs").write_text("")
        code = doctor.main(["--json"])
        said = json.loads(capsys.readouterr().out)
        assert said["can_train"] is (code == 0)
        states = {check["name"]: check["state"] for check in said["checks"]}
        assert states["runs/"] == ("missing" if blocked else "ok")
        assert said["can_train"] is ("missing" not in states.values())
        assert set(states.values()) <= {"ok", "note", "missing"}


def test_what_to_do_is_never_folded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "x" * 300 + " 'bnbench[train]'"
    monkeypatch.setattr(
        doctor, "checks", lambda: iter([doctor.Check("torch", "missing", "[no] style", remedy)])
    )
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert remedy in printed
    assert "[no] style" in printed
