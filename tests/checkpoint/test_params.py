"""Parameters on disk: any pytree, and nothing that is not what was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.checkpoint.params import load_params, save_params
from tests.checkpoint.test_encoding import TREES


@pytest.mark.parametrize("name", [name for name in TREES if name != "random"])
def test_any_pytree_comes_back(name, tmp_path):
    params = {"tree": TREES[name], "empty": jnp.zeros((0, 3))}
    save_params(tmp_path / "params", params)
    loaded = load_params(tmp_path / "params", jax.tree.map(jnp.zeros_like, params))
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "params"
    save_params(path, {"w": jnp.arange(300.0), "a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}})
    return path


LIKE = {"w": jnp.zeros(300), "a/b": jnp.zeros(2), "a": {"b": jnp.zeros(2)}}


@pytest.mark.parametrize(("like", "said"), [
    (LIKE | {"w": jnp.zeros(301)}, r"\['w'\] is float32\[300\], not float32\[301\]"),
    (LIKE | {"w": jnp.zeros(300, jnp.bfloat16)}, r"\['w'\] is float32.*not bfloat16"),
    (LIKE | {"c": jnp.zeros(1)}, r"\['c'\] is none, not float32\[1\]"),
    ({"w": LIKE["w"]}, r"\['a'\]\['b'\] is float32\[2\], not none"),
])  # fmt: skip
def test_other_parameters_are_refused_in_one_line(saved, like, said):
    with pytest.raises(ValueError, match=f"holds other parameters: {said}") as refused:
        load_params(saved, like)
    assert "\n" not in str(refused.value)
    assert str(saved) in str(refused.value)


def test_a_damaged_file_is_named(saved, tmp_path):
    with pytest.raises(ValueError, match="is not a directory of parameters"):
        load_params(tmp_path / "none", LIKE)
    for path in sorted(p for p in saved.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            try:
                loaded = load_params(saved, LIKE)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017 - or nothing is raised
            else:
                np.testing.assert_array_equal(loaded["w"], np.arange(300.0))
            path.write_bytes(whole)


def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="parameters cannot be written") as failed:
        save_params(tmp_path / "file" / "params", LIKE)
    assert failed.value.filename == str(tmp_path / "file" / "params")
