"""Refuses versions of jax that are known to compute wrong numbers."""

from __future__ import annotations

_WRONG = {"0.10.2": "wrong numbers on CPUs (jax issue 39103)"}


def refuse_wrong_numbers(jax: str, jaxlib: str) -> None:
    """Raises ImportError, with the remedy, if one of the two installed versions is known as wrong.

    It checks both: jaxlib computes, but jax is the package that a user installs by name.

    Args:
      jax: the installed version of jax.
      jaxlib: the installed version of jaxlib.
    """
    for package, version in (("jax", jax), ("jaxlib", jaxlib)):
        if version in _WRONG:
            raise ImportError(
                f"{package} {version} computes {_WRONG[version]}: install another version, e.g. "
                f"pip install 'jax>=0.10,!={version}' 'jaxlib!={version}'"
            )
