"""Networks: their sizes, their initialisation, and that they are pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbjax.models import DEMO, PAPER, MlpConfig, SpeechConfig, build, model
from dbjax.models.functional import init
from dbjax.parameter_server import partition_params

RANDOM = np.random.default_rng(0)


def batch(inputs, classes, size=64):
    x = RANDOM.normal(size=(size, inputs)).astype(np.float32)
    return x, RANDOM.integers(classes, size=size).astype(np.int32)


def numpy_forward(params, x):
    """The speech network written out."""
    layers = [params["layers"][str(i)] for i in range(len(params["layers"]))]
    for layer in layers[:-1]:
        x = 1 / (1 + np.exp(-(x @ layer["kernel"] + layer["bias"])))
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def test_the_papers_network_has_its_number_of_parameters():
    shapes = jax.eval_shape(lambda: init(PAPER, 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 41_777_152


@pytest.mark.parametrize("config", [DEMO, SpeechConfig(12, 8, depth=12, states=5)])
def test_forward_as_written_out(config):
    network = model(config, 0)
    x, _ = batch(config.inputs, config.states)
    with jax.numpy_rank_promotion("allow"):
        logits = network.apply(network.params, x)
    expected = numpy_forward(jax.tree.map(np.float64, network.params), x.astype(np.float64))
    # sums of up to 440 products in float32, in an order of XLA's: sqrt(440) roundings of 6e-8, of
    # numbers of about 1, and through the layers above, which pass on about as much
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_loss_is_the_mean_cross_entropy_and_correct_counts():
    network = build("softmax", inputs=6, classes=4, seed=0)
    x, y = batch(6, 4)
    with jax.numpy_rank_promotion("allow"):
        assert float(network.loss(network.params, (x, y))) == pytest.approx(np.log(4), rel=1e-6)
        assert int(network.correct(network.params, (x, y))) == int(np.sum(y == 0))


def test_a_penalty_is_half_of_l2_times_the_squares():
    """6 weights of 2 for the input 0: half the error is half of 9, and 24 squares together."""
    penalised = build("linear", inputs=6, classes=1, seed=0, l2=0.5)
    params = {"layer": {"kernel": jnp.full((6, 1), 2.0)}}
    data = (np.zeros((4, 6), np.float32), np.full((4, 1), 3.0, np.float32))
    assert float(penalised.loss(params, data)) == 9 / 2 + 0.5 * 0.5 * 24
    plain = build("linear", inputs=6, classes=1, seed=0)
    assert float(plain.loss(params, data)) == 9 / 2


def test_a_network_of_relus_as_written_out_says_at_first_that_all_classes_are_alike():
    network = build("mlp", inputs=5, classes=3, seed=0, widths=(7,))
    x, y = batch(5, 3)
    with jax.numpy_rank_promotion("allow"):
        assert float(network.loss(network.params, (x, y))) == pytest.approx(np.log(3), rel=1e-6)
        shifted = jax.tree.map(lambda p: p + 0.1, network.params)
        logits = network.apply(shifted, x)
    first, last = (jax.tree.map(np.float64, shifted["layers"][str(i)]) for i in range(2))
    hidden = np.maximum(0, x @ first["kernel"] + first["bias"])
    # sums of at most seven products of about 1 in float32
    np.testing.assert_allclose(logits, hidden @ last["kernel"] + last["bias"], rtol=0, atol=1e-6)
    assert 1.2 < np.std(network.params["layers"]["0"]["kernel"]) * np.sqrt(5) < 1.7  # He: root 2


def test_seeds_differ_and_repeat_and_share_what_is_compiled():
    a, b, again = (model(DEMO, seed) for seed in (0, 1, 0))
    kernels = [m.params["layers"]["0"]["kernel"] for m in (a, b, again)]
    assert jnp.array_equal(kernels[0], kernels[2])
    assert not jnp.array_equal(kernels[0], kernels[1])
    assert a.loss is b.loss


def layer_gradients(params, config):
    """Root mean square of the loss's gradient with respect to each layer's inputs."""
    x, y = batch(config.inputs, config.states)

    def loss(shifts):
        h = jnp.asarray(x)
        for i, shift in enumerate(shifts):
            layer = params["layers"][str(i)]
            h = (h + shift) @ layer["kernel"] + layer["bias"][None]
            h = jax.nn.sigmoid(h) if i < len(shifts) - 1 else h
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h, y))

    shifts = [jnp.zeros((64, params["layers"][str(i)]["kernel"].shape[0]))
              for i in range(config.depth + 1)]  # fmt: skip
    return [float(jnp.sqrt(jnp.mean(g**2))) for g in jax.grad(loss)(shifts)]


def test_gradients_keep_their_size_through_the_sigmoid_layers():
    config = SpeechConfig(width=256, states=128, depth=5)
    ours = layer_gradients(model(config, 0).params, config)
    ratio = ours[1] / ours[-1]  # bottom over top
    assert 0.2 < ratio < 5
    glorot = jax.tree.map(lambda x: x / 4 if x.ndim == 2 else jnp.zeros_like(x),
                          model(config, 0).params)  # fmt: skip
    plain = layer_gradients(glorot, config)
    assert plain[1] / plain[-1] < 0.02  # what the gain and the centring are for


def test_paths_are_named_for_rules_and_checkpoints():
    params = build("mlp", inputs=3, classes=2, seed=0, widths=(40, 5)).params
    names = {piece.name for pieces in partition_params(params, 2).shards for piece in pieces}
    assert "layers/1/kernel" in {name.split("[")[0] for name in names}


def test_mistakes_are_named():
    for call, text in (
        (lambda: build("speach", inputs=1, classes=1, seed=0), "nearest: 'speech'"),
        (lambda: build("speech", inputs=1, classes=1, seed=0, widht=3), "nearest: 'width'"),
        (lambda: SpeechConfig(width=0), "speech.width=0 must be an integer of at least 1"),
        (lambda: MlpConfig(3, 2, (4, 0)), r"mlp.widths\[1\]=0"),
        (lambda: model(DEMO, 0).apply(model(DEMO, 0).params, jnp.zeros((2, 441))),
         "must end in 440"),
        (lambda: model(DEMO, 0).apply({"layers": {}}, jnp.zeros((2, 440))),
         r"params/layers/0/bias is missing; the network needs shape \(256,\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call()
