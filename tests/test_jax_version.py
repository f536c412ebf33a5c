"""The installed jax computes right numbers; versions known to compute wrong ones are refused."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from dbjax.jax_version import refuse_wrong_numbers
from tests.processes import LIMIT_S

FAKED = "import importlib; importlib.import_module({!r}).__version__ = '0.10.2'; {}"


def test_the_sum_of_squares_that_one_version_of_jax_gets_wrong():
    """In 0.10.2 the last row, alone in its tile, is 1065369600 or 1071645696 (jax issue 39103)."""
    i = jnp.arange(32769.0)
    x = jnp.stack((i, 0 * i, 0 * i), 1)
    found = jax.jit(jax.vmap(lambda row: ((jnp.eye(3) @ row) ** 2).sum()))(x)
    assert found[-1] == 1073741824
    # Exactly: products with 0 and 1, and one square rounded once.
    np.testing.assert_array_equal(found, np.arange(32769, dtype=np.float32) ** 2)


@pytest.mark.parametrize("versions", [("0.10.2", "0.10.2"), ("0.10.2", "0.10.1"), ("1", "0.10.2")])
def test_a_version_known_as_wrong_is_refused_in_one_line(versions):
    with pytest.raises(ImportError, match=r"^jax(lib)? 0\.10\.2 computes wrong numbers .*pip.*$"):
        refuse_wrong_numbers(*versions)


def test_the_installed_version_and_its_neighbours_are_accepted():
    for version in ("0.10.1", "0.10.20", "0.11.0", jax.__version__):
        refuse_wrong_numbers(version, version)


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_importing_dbjax_refuses_it(package):
    done = python(FAKED.format(package, "import dbjax"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {package} 0.10.2 computes wrong")


def test_a_command_says_it_in_one_line():
    run = "import runpy, sys; sys.argv[0] = '-m'; runpy.run_module('experiments.run')"
    done = python(FAKED.format("jax", run))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("jax 0.10.2 computes wrong numbers")


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_pip_never_installs_it(package):
    asked = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    (requirement,) = (r for r in map(Requirement, asked) if r.name == package)
    assert not requirement.specifier.contains("0.10.2")
    pinned = [Requirement(line) for line in constraints() if line.startswith(f"{package}==")]
    for python_version in ("3.11", "3.12", "3.13"):
        (one,) = (r for r in pinned if r.marker.evaluate({"python_version": python_version}))
        (pin,) = one.specifier
        refuse_wrong_numbers(pin.version, pin.version)
        assert requirement.specifier.contains(pin.version)


def constraints():
    return Path("constraints.txt").read_text().splitlines()
