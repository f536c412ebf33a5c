"""The provenance of a result: package versions, commit and machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("dbjax", "jax", "jaxlib", "flax", "optax", "numpy")


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.lru_cache(maxsize=1)  # the code of this process is of one commit
def commit() -> str | None:
    """Returns the commit of the checkout that dbjax runs from, with "+" for local changes.

    None if dbjax does not run from a git checkout, or git is not installed.
    """
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    return name.stdout.strip() + ("+" if changes.stdout else "") if name.returncode == 0 else None


def host() -> dict[str, str]:
    """Returns the machine's host name and platform."""
    return {"name": platform.node(), "platform": platform.platform()}
