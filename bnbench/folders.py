"""Where conf/ is, and the folders that runs go into: can they be made, did they stay empty?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

CONFIG_NAME = "config"
LONGEST_TEMPORARY = 72  # a socket's 107 characters, without multiprocessing's folder and file names


def config_folder() -> Path:
    """The conf/ of a checkout, or the one that a wheel carries inside the package."""
    package = Path(__file__).parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise ValueError(f"no conf/ beside or inside {package}: the installation is damaged, reinstall bnbench")


def check_output(folder: str) -> None:
    """Raise ValueError if run folders cannot be made below `folder`."""
    path = Path(folder)
    for ancestor in (path, *path.absolute().parents):
        if ancestor.exists() or ancestor.is_symlink():
            if not ancestor.is_dir():
                raise ValueError(
                    f"dir={folder}: {ancestor} is a file in the way: remove it or choose another dir"
                )
            if not os.access(ancestor, os.W_OK | os.X_OK):
                raise ValueError(f"dir={folder}: {ancestor} is not writable: choose another dir=...")
            return


def check_temporary() -> None:
    """Raise ValueError if the sockets between ranks would have longer paths than a system allows: 107 characters."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TEMPORARY:
        raise ValueError(
            f"temporary files go to {folder}, whose {len(os.fsencode(folder))} characters are too many for the sockets "
            f"between ranks: at most {LONGEST_TEMPORARY}; set TMPDIR to a shorter one, such as TMPDIR=/tmp"
        )


def missing(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist yet, innermost first."""
    return [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first, up to the first that somebody put something into."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def config_groups() -> list[str]:
    """The names of Hydra's config groups: model, norm, data and so on."""
    return [folder.name for folder in config_folder().iterdir() if folder.is_dir() and folder.name != "hydra"]
