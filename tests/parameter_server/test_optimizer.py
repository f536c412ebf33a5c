"""Rules on shards: they see the user's own tree, and do what optax does on the whole of it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import path_aware_map
from jax.sharding import PartitionSpec as P

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.optim import downpour_adagrad, require_elementwise
from dbjax.parameter_server import partition_params, server_rule
from dbjax.parameter_server import shard as shards_own
from dbjax.parameter_server.optimizer import checked_trees, trees_for
from dbjax.parameter_server.reshard import Resharding, _rules

# The same operations on the same numbers, so at most a few roundings of float32 apart: loops of
# other lengths may round a root or a power differently, and four updates may add that up.
CLOSE = {"rtol": 2e-6, "atol": 1e-7}
SHAPES = {"encoder": {"w": (6, 4), "bias": (4,)}, "head": [(4, 1), ()]}


def draw(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS, GRADIENTS = draw(0), [draw(seed) for seed in range(1, 5)]


def frozen_encoder(tree):
    return path_aware_map(lambda path, _: "still" if "encoder" in path else "moves", tree)


def first_key(tree):
    name = jax.tree_util.tree_map_with_path
    return name(lambda path, _: "still" if path[0].key == "encoder" else "moves", tree)


def no_bias(tree):
    name = jax.tree_util.tree_map_with_path
    return name(lambda path, _: getattr(path[-1], "key", None) != "bias", tree)


def matrices(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


MOVES = {"moves": optax.adam(0.1), "still": optax.set_to_zero()}
SELECTIVE = {
    "mask by path": optax.adamw(0.1, weight_decay=0.5, mask=no_bias),
    "mask by ndim": optax.adamw(0.1, weight_decay=0.5, mask=matrices),
    "mask as a tree": optax.adamw(
        0.1, weight_decay=0.5, mask={"encoder": {"w": True, "bias": False}, "head": [True, False]}
    ),
    "mask as a prefix": optax.lion(0.1, weight_decay=0.5, mask={"encoder": True, "head": False}),
    "masked": optax.masked(optax.scale(0.0), no_bias),
    "masked inside a chain": optax.chain(
        optax.masked(optax.ema(0.9), matrices), optax.trace(0.9), optax.scale(-0.1)
    ),
    "labels by flax's path": optax.multi_transform(MOVES, frozen_encoder),
    "labels by key": optax.multi_transform(MOVES, first_key),
    "labels as a tree": optax.multi_transform(MOVES, {"encoder": "still", "head": ["moves"] * 2}),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.01, 3)),
    "several steps": optax.MultiSteps(optax.adam(0.1), 2),
    "several steps of a mask": optax.MultiSteps(
        optax.adamw(0.1, weight_decay=0.5, mask=no_bias), every_k_schedule=2
    ),
    "selective": optax.selective_transform(optax.sgd(0.1), freeze_mask=no_bias),
    "zero_nans": optax.chain(optax.zero_nans(), optax.sgd(0.1)),
    "ours": downpour_adagrad(0.1),
}

# What optax's public transforms are called with, where a rate of 0.1 alone does not do.
ARGUMENTS = {
    "add_noise": (0.1, 0.5, 0), "noisy_sgd": (0.1, 0.3, 0.55, 0), "apply_every": (2,),
    "apply_if_finite": (optax.sgd(0.1), 3), "chain": (optax.sgd(0.1),),
    "conditionally_mask": (optax.sgd(0.1), lambda step: step > 1),
    "conditionally_transform": (optax.sgd(0.1), lambda step: step > 1),
    "differentially_private_aggregate": (1.0, 0.5, 0), "dpsgd": (0.1, 1.0, 0.5, 0),
    "flatten": (optax.adam(0.1),), "freeze": (no_bias,), "lookahead": (optax.sgd(0.1), 5, 0.5),
    "masked": (optax.sgd(0.1), no_bias),
    "measure_with_ema": (optax.tree.norm, 0.9), "mechanize": (optax.sgd(0.1),),
    "monitor": ({},), "multi_transform": (MOVES, frozen_encoder),
    "named_chain": (("a", optax.sgd(0.1)),),
    "partition": (MOVES, frozen_encoder), "sam": (optax.sgd(0.1), optax.sgd(0.1)),
    "scale_by_schedule": (lambda step: -0.1 / (step + 1),), "scale_by_trust_ratio": (),
    "schedule_free": (optax.sgd(0.1), 0.1),
    "snapshot": ("updates", lambda updates: updates),
    "split_real_and_imaginary": (optax.adam(0.1),),
    "stateless": (lambda updates, params: updates,),
    "stateless_with_tree_map": (lambda update, param: update,),
    "with_extra_args_support": (optax.sgd(0.1),), "hutchinson_estimator_diag_hessian": (0,),
}  # fmt: skip


def is_rule(made):
    return callable(getattr(made, "init", None)) and callable(getattr(made, "update", None))


def make(name, factory):
    choices = [ARGUMENTS[name]] if name in ARGUMENTS else [(0.1,), (), (0.1, 0.9)]
    for arguments in choices:
        try:
            made = factory(*arguments)
        except Exception:  # not that way
            continue
        if is_rule(made):
            return made
    return None


def public():
    """Every factory of a transform in optax and optax.contrib, by name."""
    found = {}
    for module in (optax, optax.contrib):
        for name, factory in vars(module).items():
            if name.startswith("_") or inspect.isclass(factory) or not callable(factory):
                continue
            if (made := make(name, factory)) is not None:
                found[name] = made
    return found


with pytest.MonkeyPatch.context() as patch:
    patch.setattr("warnings.warn", lambda *_, **__: None)  # optax's own, about some factories
    RULES = SELECTIVE | public()
NEEDS_MORE = "cannot run on a shard or in a replica, where a rule is given gradient, state and"
MIXES = "is not elementwise: a shard would apply it to its own slice only"
NEED_MORE = """
lbfgs polyak_sgd scale_by_polyak scale_by_backtracking_linesearch scale_by_zoom_linesearch momo
momo_adam reduce_on_plateau hutchinson_estimator_diag_hessian sophia lookahead dpsgd
differentially_private_aggregate measure_with_ema sm3 scale_by_sm3 scale_by_muon
"""
MIX = """
adafactor adaptive_grad_clip add_noise apply_if_finite centralize clip_by_block_rms
clip_by_global_norm dadapt_adamw dog dowg flatten fromage galore lamb lars mechanize muon
noisy_sgd normalize normalize_by_update_norm novograd prodigy
scale_by_distance_over_gradients scale_by_galore scale_by_lbfgs
scale_by_novograd scale_by_param_block_norm scale_by_param_block_rms scale_by_trust_ratio
"""
REFUSED = dict.fromkeys(NEED_MORE.split(), NEEDS_MORE) | dict.fromkeys(MIX.split(), MIXES)


def plain(rule, params, gradients, state=None):
    state = rule.init(params) if state is None else state
    for gradient in gradients:
        updates, state = rule.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def pushed(rule, partition, slices, states, gradients):
    """What shards hold after these pushes to each."""
    for gradient in gradients:
        parts = zip(slices, states, partition.split(gradient), strict=True)
        slices, states = zip(*(rule.apply(s, state, g, 8) for s, state, g in parts), strict=True)
    return slices, states


def on_shards(rule, partition):
    slices = partition.split(PARAMS)
    served = server_rule(rule, checked_trees(rule, partition, slices))
    states = [served.init(slice_) for slice_ in slices]
    return partition.join(pushed(served, partition, slices, states, GRADIENTS)[0])


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


@pytest.mark.parametrize("name", [name for name in RULES if name not in REFUSED])
def test_a_rule_on_shards_is_the_rule_on_the_whole(name):
    rule = RULES[name]
    with jax.disable_jit():
        expected = plain(rule, PARAMS, GRADIENTS)
    for shards in (1, 2, 3):
        partition = partition_params(PARAMS, shards)
        with jax.disable_jit():
            assert_close(on_shards(rule, partition), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_is_refused_says_why(name):
    # A rule of optax's broadcasts across ranks, which these tests forbid.
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=REFUSED[name]) as error,
    ):
        require_elementwise(RULES[name], params=PARAMS)
    assert "\n" not in str(error.value)
    assert "; use " in str(error.value)  # the remedy


# Of a network over two devices: each shard may hold a block of a leaf from both.
CUT = ModelSharding(
    (("unit", 2),),
    (("encoder/w", P(None, "unit")), ("encoder/bias", P("unit")), ("head/.*", P())),
    lambda params, batch: 0.0,
)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("name", ["mask as a tree", "labels by flax's path", "several steps"])
def test_the_same_where_replicas_are_partitioned_over_devices(name, shards):
    partition = partition_params(PARAMS, shards, Layout(CUT, PARAMS))
    seen = []

    def see(tree):
        seen.extend(jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(tree))
        return jax.tree.map(lambda _: True, tree)

    rule = optax.chain(RULES[name], optax.masked(optax.identity(), see))
    with jax.disable_jit():
        assert_close(on_shards(rule, partition), plain(RULES[name], PARAMS, GRADIENTS))
    own = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(PARAMS)}
    assert set(seen) == own


def test_one_shard_sees_the_whole_leaf_of_a_replica_over_devices():
    """So a rule that looks at a whole leaf is right there."""
    partition = partition_params(PARAMS, 1, Layout(CUT, PARAMS))
    with jax.disable_jit():
        rule = optax.lamb(0.1)
        assert_close(on_shards(rule, partition), plain(rule, PARAMS, GRADIENTS))


@pytest.mark.parametrize("name", ["mask by path", "labels by key", "several steps", "zero_nans",
                                  "hyperparameters", "masked inside a chain"])  # fmt: skip
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("layout", [None, CUT])
def test_resharding_keeps_the_state_of_a_rule(name, before, after, layout):
    rule = RULES[name]
    old, new = (
        partition_params(PARAMS, shards, layout and Layout(layout, PARAMS))
        for shards in (before, after)
    )
    with jax.disable_jit():
        slices = old.split(PARAMS)
        served = server_rule(rule, checked_trees(rule, old, slices))
        states = [served.init(slice_) for slice_ in slices]
        slices, states = pushed(served, old, slices, states, GRADIENTS[:3])
        moved = _rules([state.rule for state in states], slices, Resharding(old, new))
        slices = new.split(old.join(slices))
        served = server_rule(rule, checked_trees(rule, new, slices))
        fresh = [served.init(slice_) for slice_ in slices]
        states = [
            shards_own.ServerState(shards_own._kept(mine.rule, given), mine.refused)
            for mine, given in zip(fresh, moved, strict=True)
        ]
        slices, _ = pushed(served, new, slices, states, GRADIENTS[3:])
        assert_close(new.join(slices), plain(rule, PARAMS, GRADIENTS))


X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
Y = X @ np.arange(6, dtype=np.float32)


def loss(params, batch):
    x, y = batch
    hidden = x @ params["encoder"]["w"] + params["encoder"]["bias"][None]
    return jnp.mean(((hidden @ params["head"][0])[:, 0] + params["head"][1] - y) ** 2)


TASK = dbjax.Task(PARAMS, loss, (X, Y), batch_size=8)
FROZEN = optax.multi_transform(
    {"moves": optax.sgd(0.01), "still": optax.set_to_zero()}, frozen_encoder
)


def trained(method, **kwargs):
    return dbjax.run(TASK, method, **kwargs).params


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        (downpour.Config(FROZEN, replicas=2, shards=3, steps=5), {}),
        (downpour.Config(FROZEN, replicas=1, shards=2, steps=5), {"runtime": "threads"}),
        (downpour.Config(FROZEN, replicas=1, shards=2, steps=5, n_fetch=2, n_push=2), {}),
        (downpour.Config(FROZEN, replicas=2, shards=2, steps=5, shard_backups=1), {}),
        (sgd.Config(FROZEN, replicas=1, steps=5), {}),
        (sgd.Config(FROZEN, replicas=2, shards=3, steps=5), {}),
    ],
)
def test_leaves_that_a_rule_freezes_stay_put(method, kwargs):
    params = trained(method, **kwargs)
    assert all(
        map(np.array_equal, jax.tree.leaves(params["encoder"]), jax.tree.leaves(PARAMS["encoder"]))
    )
    assert not np.array_equal(params["head"][0], PARAMS["head"][0])


def test_a_local_rule_sees_the_whole_tree():
    """With n_fetch = 2 every second gradient is taken after a local step."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), FROZEN)
    config = downpour.Config(
        optax.sgd(0.01), rule, replicas=1, shards=2, steps=2, n_fetch=2, n_push=2
    )
    batches = TASK.batches(0, 1)
    first = jax.grad(loss)(PARAMS, batches.at(0))
    local = plain(rule, PARAMS, [first])
    total = jax.tree.map(jnp.add, first, jax.grad(loss)(local, batches.at(1)))
    assert_close(trained(config), plain(optax.sgd(0.01), PARAMS, [total]))


def test_a_mask_that_cannot_be_used_on_a_shard_says_so():
    def by_size(tree):
        flat = {"/".join(k): v.ndim > 1 for k, v in _flattened(tree).items()}
        return jax.tree.unflatten(jax.tree.structure(tree), list(flat.values()))

    rule = optax.masked(optax.scale(0.5), by_size)
    with pytest.raises(ValueError, match=r"masked fails on a shard, where .* optax.MaskedNode"):
        trained(downpour.Config(rule, replicas=1, shards=3, steps=1))


DICTS = {"encoder": {"w": PARAMS["encoder"]["w"], "bias": PARAMS["encoder"]["bias"]},
         "head": {"w": PARAMS["head"][0], "bias": jnp.zeros(1)}}  # fmt: skip


def on_shards_of_dicts(rule, shards):
    partition = partition_params(DICTS, shards)
    slices = partition.split(DICTS)
    served = server_rule(rule, checked_trees(rule, partition, slices))
    states = [served.init(slice_) for slice_ in slices]
    return partition.join(pushed(served, partition, slices, states, [DICTS, DICTS])[0])


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize(
    "mask",
    [
        lambda tree: path_aware_map(lambda path, leaf: leaf.ndim > 1, tree),
        lambda tree: path_aware_map(lambda path, leaf: leaf.size > 4 and "w" in path, tree),
        lambda tree: {k: {n: len(v.shape) > 1 for n, v in of.items()} for k, of in tree.items()},
    ],
    ids=["flax's path", "size", "dicts"],
)
def test_a_mask_may_look_at_every_leaf_also_at_absent_ones(mask, shards):
    rule = optax.adamw(0.1, weight_decay=0.5, mask=mask)
    with jax.disable_jit():
        assert_close(on_shards_of_dicts(rule, shards), plain(rule, DICTS, [DICTS, DICTS]))


def by_position(chosen):
    def mask(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([chosen(i) for i in range(len(leaves))])

    return mask


@pytest.mark.parametrize(
    "chosen", [lambda i: i < 2, lambda i: i == 0, lambda i: i % 2], ids=["two", "first", "even"]
)
def test_a_mask_by_position_is_refused_where_a_shard_holds_other_positions(chosen):
    """An absent leaf is none, so the leaves behind it would move up."""
    rule = optax.chain(optax.masked(optax.set_to_zero(), by_position(chosen)), optax.adam(0.01))
    for shards in (2, 3):
        partition = partition_params(PARAMS, shards)
        with pytest.raises(ValueError, match=r"masked behaves differ.* positions.*; use shards=1"):
            checked_trees(rule, partition, partition.split(PARAMS))
    with jax.disable_jit():
        assert_close(on_shards(rule, partition_params(PARAMS, 1)), plain(rule, PARAMS, GRADIENTS))


def test_a_local_rule_may_go_by_position():
    rule = optax.chain(
        optax.masked(optax.set_to_zero(), by_position(lambda i: i < 2)), optax.sgd(1.0)
    )
    partition = partition_params(PARAMS, 2)
    slices, gradient = partition.split(PARAMS), partition.split(GRADIENTS[0])
    trees = trees_for(rule, partition, slices)
    with jax.disable_jit():
        new, _ = trees.update(rule, slices, trees.init(rule, slices), gradient)
        assert_close(partition.join(new), plain(rule, PARAMS, GRADIENTS[:1]))


def _flattened(tree):
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    return {tuple(map(str, path)): leaf for path, leaf in leaves}


def test_a_rule_for_another_tree_is_refused_before_the_run():
    rule = optax.masked(optax.scale(0.5), {"decoder": True, "head": True})
    for shards in (1, 2):
        with pytest.raises(ValueError, match="masked cannot run on a shard"):
            trained(downpour.Config(rule, replicas=1, shards=shards, steps=1))


def test_a_local_rule_that_needs_the_loss_is_refused_before_the_run():
    with pytest.raises(ValueError, match="scale_by_polyak cannot run on a shard or in a replica"):
        trained(downpour.Config(local_rule=optax.polyak_sgd(), replicas=1, shards=1, steps=1))
