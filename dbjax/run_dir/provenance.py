"""Where a result comes from: versions, commit, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("dbjax", "jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Of the checkout that dbjax is run from; "+" when it has changes."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    return name.stdout.strip() + ("+" if changes.stdout else "") if name.returncode == 0 else None


def host() -> dict[str, str]:
    """The machine's name and kind."""
    return {"name": platform.node(), "platform": platform.platform()}
