"""What a set of assignments to fields means: whatever their order, and never nothing."""

import contextlib
import itertools
import types

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import dbjax
from dbjax.data import ArrayExamples, Labelled, Splits
from dbjax.model_parallel.sharding import ModelSharding
from experiments import build, construct, resume, run
from experiments.command_line import load_config, parse
from experiments.defaults import defaults, flat
from experiments.fields import assign
from experiments.sweep.plan import Plan
from experiments.sweep.space import Space, choice, log_uniform, uniform

FILE = "--config=configs/quickstart.py:smoke"
SETS = [  # (assignments, fields that result)
    (
        ["rule.name=adam", "rule.learning_rate=0.1", "rule.b1=0.8"],
        {"rule.name": "adam", "rule.learning_rate": 0.1, "rule.b1": 0.8},
    ),
    (
        ["algorithm=sandblaster", "options.replicas=2", "rule.name=lbfgs", "rule.memory=3"],
        {"algorithm": "sandblaster", "options.replicas": 2, "rule.name": "lbfgs", "rule.memory": 3},
    ),
    (
        ["data.name=quadratic", "data.condition=10.0", "model.name=linear", "model.l2=0.1"],
        {"data.name": "quadratic", "data.condition": 10.0, "model.name": "linear", "model.l2": 0.1},
    ),
    (
        ["options.local_rule.name=sgd", "options.local_rule.learning_rate=0.1",
         "options.n_fetch=2"],
        {"options.local_rule.name": "sgd", "options.local_rule.learning_rate": 0.1,
         "options.replicas": 8, "options.shards": 3, "options.n_fetch": 2},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), SETS, ids=[given[0] for given, _ in SETS])
def test_overrides_mean_the_same_in_any_order(given, expected):
    groups = {name.partition(".")[0] for name in expected} - {"algorithm"}
    for order in itertools.permutations(f"--config.{one}" for one in given):
        config = parse([*order[:1], FILE, *order[1:]]).config
        found = {
            name: value
            for name, value in flat(config.to_dict()).items()
            if name.partition(".")[0] in groups or name in expected
        }
        assert found == expected
        build.require_sound(config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["rule.name=adam", "rule.learning_rate=0.1", "rule.gamma=0.5"],
         r"rule 'adam' has no argument 'gamma'; there are: learning_rate.*0\.5"),
        (["rule.name=adam"], "rule 'adam' needs 'learning_rate'"),
        (["data.name=digits", "data.num_examples=9"], "data 'digits' has no 'num_examples'.*9"),
        (["model.name=mlp", "model.units=9"], "model 'mlp' has no 'units'.*9"),
        (["algorithm=sgd", "options.n_fetch=9"], "options has no 'n_fetch'.*9"),
    ],
)  # fmt: skip
def test_fields_of_another_name_are_refused_in_any_order(given, said):
    for order in itertools.permutations(f"--config.{one}" for one in given):
        config = parse([FILE, *order]).config
        with pytest.raises(ValueError, match=said):
            build.require_sound(config)


RULES = {"rule.name": choice("sgd", "adam"), "rule.learning_rate": log_uniform(1e-3, 1e-1)}


def test_a_space_may_choose_a_name_and_what_all_names_take():
    for items in itertools.permutations(RULES.items()):
        plan = Plan(load_config("configs/quickstart.py:smoke"), Space(dict(items)))
        drawn = {"rule.learning_rate": 0.02, "rule.name": "adam"}
        rule = plan.job(drawn).config.rule.to_dict()
        assert rule == {"name": "adam", "learning_rate": 0.02}


def test_a_space_refuses_what_only_some_names_take():
    for items in itertools.permutations({**RULES, "rule.b1": uniform(0.8, 0.9)}.items()):
        with pytest.raises(
            ValueError, match=r"rule 'sgd' has no argument 'b1'.* a space of its own"
        ):
            Plan(load_config("configs/quickstart.py:smoke"), Space(dict(items)))


def test_fixed_fields_are_arguments_of_the_name_that_a_space_chooses():
    chosen = parse([FILE, "--config.rule.learning_rate=0.3"])
    plan = Plan(chosen.config, Space({"rule.name": choice("sgd", "adam")}), tuple(chosen.changes))
    found = [plan.job({"rule.name": name}).config.rule.to_dict() for name in ("sgd", "adam")]
    assert found == [
        {"name": "sgd", "learning_rate": 0.3},
        {"name": "adam", "learning_rate": 0.3},
    ]
    with pytest.raises(ValueError, match=r"rule\.learning_rate=0\.3 has no effect: SPACE sets it"):
        Plan(chosen.config, Space(RULES), tuple(chosen.changes))


@pytest.mark.parametrize(
    "name", ["event_log", "max_spans", "checkpoint.keep", "ray.cpus", "checkpoint.every_updates"]
)
def test_a_space_refuses_what_changes_no_trial(name):
    with pytest.raises(ValueError, match=f"'{name}' does not change"):
        Plan(load_config("configs/quickstart.py:smoke"), Space({name: choice(1)}))


def test_a_space_may_vary_what_nodes_that_die_go_on_from():
    deaths = {"cluster.machine.mean_time_between_failures_s": choice(float("inf"), 9.0)}
    values = deaths | {"checkpoint.every_s": choice(0.5, 1.0)}
    Plan(load_config("configs/quickstart.py:smoke"), Space(values))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["options.rule=sgd"], "options.rule='sgd' has no effect: set rule.name"),
        (["options.local_rule=sgd"], "write options.local_rule.name=sgd"),
        (["options.local_rule.name=sgd", "options.local_rule.learning_rate=0.1"],
         "it needs options.n_fetch above 1"),
        (["cluster.latency_s=0.5", "runtime=threads"], "it needs runtime=virtual"),
        (["ray.cpus=2"], "it needs runtime=ray"),
        (["evaluations=5", "until_s=none", "options.steps=3"], "it needs until_s"),
        (["sharding.how=units"], "it needs sharding.devices above 1"),
        (["cluster.machine.flops_per_s=1e9"], "it needs cluster.compute_s=costs"),
        (["cluster.message_s=1e-3"], "it needs cluster.compute_s=costs"),
        (["checkpoint.every_s=1", "checkpoint.keep=0"], "it needs checkpoint.keep, or nodes that"),
        (["cluster.machine.straggle_factor=3"], "straggle_factor=3.0: set both, or neither"),
        (["algorithm=sandblaster", "rule.name=lbfgs", "options.overlap=0.5"],
         "it needs options.sample below 1"),
        (["cluster.machine.mean_time_to_repair_s=3"],
         "it needs cluster.machine.mean_time_between_failures_s"),
        (["cluster.machine.cards=3"], "it needs a machine's bandwidth_bytes_per_s"),
        (["cluster.machine.cards=3", "cluster.memory_bandwidth_bytes_per_s=1e9"],
         "it needs a machine's bandwidth_bytes_per_s"),
        (["cluster.size_scale=3"], "it needs a bandwidth_bytes_per_s"),
        (["sharding.host_devices=3"], "it needs sharding.devices above 1"),
        (["sharding.processes=2"], "it needs sharding.devices above 1"),
        (["sharding.processes=2", "sharding.devices=4"], "processes=2 needs runtime=ray, not virt"),
        (["sharding.processes=3", "sharding.devices=4", "runtime=ray"],
         "processes=3 must divide sharding.devices=4"),
        (["sharding.processes=0", "sharding.devices=4", "runtime=ray"], "must be at least 1"),
        (["rule.nesterov=true"], "rule 'sgd': nesterov=True has no effect: set momentum too"),
        (["rule.accumulator_dtype=foo"], "accumulator_dtype='foo' has no effect: set momentum"),
        (["options.n_fetch=2", "options.local_rule.name=rmsprop",
          "options.local_rule.learning_rate=0.1", "options.local_rule.nesterov=true"],
         "rule 'rmsprop': nesterov=True has no effect: set momentum too"),
        (["data_dir=/somewhere"], "data_dir='/somewhere' has no effect"),
        (["data_dir="], "--config.data_dir= is empty"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        build.require_sound(parse([FILE, *(f"--config.{one}" for one in given)]).config)


@pytest.mark.parametrize(
    "given",
    [
        ["rule.nesterov=true", "rule.momentum=0.9", "rule.accumulator_dtype=bfloat16"],
        ["rule.name=adam", "rule.learning_rate=0.1", "rule.nesterov=true"],
        ["rule.name=adamw", "rule.learning_rate=0.1", "rule.mask=true"],
        [f"cluster.machine.mean_time_{name}_s=3" for name in ("to_repair", "between_failures")],
        ["cluster.machine.cards=3", "cluster.machine.bandwidth_bytes_per_s=1e9"],
        ["cluster.size_scale=3", "cluster.memory_bandwidth_bytes_per_s=1e9"],
        ["sharding.host_devices=3", "sharding.devices=2"],
        ["sharding.processes=2", "sharding.devices=4", "runtime=ray"],
    ],
)  # fmt: skip
def test_what_has_an_effect_is_taken(given):
    build.require_sound(parse([FILE, *(f"--config.{one}" for one in given)]).config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["rule.name=adamw", "rule.learning_rate=0.1", "rule.mask=nothing"],
         "rule 'adamw': mask='nothing' must be a tree or a function, not a word"),
        (["rule.learning_rate=nan"], "rule.learning_rate=nan is not a number: give one"),
        (["until_s=nan"], "--config.until_s=nan is not a number"),
        (["event_log=nan"], "--config.event_log=nan must be bool or None"),
        (["rule.name=adam", "rule.learning_rate=nan"], "rule.learning_rate=nan is not a number"),
        (["rule.learning_rate=true"], r"rule\.learning_rate=true must be float, like 0\.05"),
        (["rule.name=adam", "rule.learning_rate=true"], "learning_rate=True must be float"),
        (["options.replicas=true"], r"options\.replicas=true must be int, like 8"),
        (["rule.name=chain"], "^rule 'chain': not enough values to unpack"),
        (["rule.momentum=0.9", "rule.accumulator_dtype=foo"], "rule 'sgd': .*'foo'"),
    ],
)  # fmt: skip
def test_a_value_that_no_rule_can_take_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        build.require_sound(parse([FILE, *(f"--config.{one}" for one in given)]).config)


def test_data_that_cannot_be_made_is_named_with_its_options():
    given = ["--config.data.name=digits", "--config.data.test_share=1e-5"]
    with pytest.raises(ValueError, match="data 'digits' with test_share=1e-05: data needs arrays"):
        build.task(parse([FILE, *given]).config)


class Handed(Exception):
    """Ends a run before it begins."""


@pytest.fixture
def handed(monkeypatch, tmp_path):
    """All that a config hands to the library for a run, as text; nothing runs, no data is made."""
    log, numbers, real_rule = [], itertools.count(), construct.rule
    data = ArrayExamples(Labelled(np.zeros((999, 4), np.float32), np.zeros(999, np.int32)))
    splits = Splits("none", data, data, 2, (4,))

    def loss(params, batch): ...

    def sharding(devices, how):
        return ModelSharding((("unit", devices),), ((str(how), PartitionSpec()),), loss)

    network = types.SimpleNamespace(
        params={"w": np.zeros(1)}, loss=loss, sharding=sharding, correct=None
    )

    def noted(name, result):
        return lambda *args, **kwargs: log.append((name, args, sorted(kwargs.items()))) or result

    def rule(fields):
        real_rule(fields)  # refuses what is wrong
        return optax.GradientTransformation(f"rule {sorted(fields.items())}", None)

    def begun(task, method, *, trace, log: object, checkpoints, **arguments):
        arguments.pop("resume")
        rest = (task.batch_size, task.seed, task.sharding, trace.max_spans, log is None)
        raise Handed(repr((method, sorted(arguments.items()), rest, checkpoints)))

    monkeypatch.setattr(build, "load", noted("data", splits))
    monkeypatch.setattr(build, "build", noted("model", network))
    monkeypatch.setattr(build, "evaluation", noted("evaluation", None))
    monkeypatch.setattr(construct, "rule", rule)
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 8)
    monkeypatch.setattr(jax.config, "update", noted("jax", None))
    monkeypatch.setattr(dbjax, "run", begun)
    monkeypatch.setattr(resume, "Checkpoints", FakeCheckpoints)

    def look(config):
        log.clear()
        with pytest.raises(Handed) as found:
            run.run_config(config, tmp_path / str(next(numbers)), "a run")
        told = [(name, [a for a in args if isinstance(a, (str, int, float))], kwargs)
                for name, args, kwargs in log]  # fmt: skip
        return f"{told} {found.value}"

    return look


class FakeCheckpoints(contextlib.nullcontext):
    def __init__(self, directory, keep, overwrite):
        super().__init__(self)
        self.keep = keep

    def latest(self):
        return None

    def __repr__(self):
        return f"checkpoints, {self.keep}"


OTHERS = {  # values that fields may have, where one more, or twice as much, will not do
    "checkpoint.every_updates": 7,
    "cluster.compute_s": 0.7,
    "cluster.failures": ({"node": "shard/0", "at_s": 1.0, "back_s": 2.0},),
    "cluster.outages": ({"a": "replica/*", "b": "shard/0", "at_s": 1.0, "back_s": 2.0},),
    "cluster.links": ({"a": "replica/1", "b": "*", "latency_s": 0.5},),
    "cluster.machine.law": "exponential",
    "sharding.how": "alternating",
    "sharding.host_devices": 3,
    "data_dir": "/somewhere",
    "data_seed": 5,
    "cluster.seed": 5,
    "model.widths": (3,),
    "options.order": "free",
    "options.stops.relative_decrease": 1e-3,
    "ray.address": "host:1",
    "ray.replica_cpus": 0.5,
}
NAMES = {
    "algorithm": ("sgd", "downpour"),
    "data.name": ("digits", "synthetic"),
    "model.name": ("mlp", "softmax"),
    "rule.name": ("sgd", "adam"),
    "runtime": ("threads", "virtual"),
}


def other(config, name, value):
    if name == "event_log":
        return config.runtime == "virtual"
    if name in NAMES:
        return next(one for one in NAMES[name] if one != value)
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return 1e6 if value == float("inf") else 2 * value or 0.5


WALKED = [  # a config of each kind
    ("configs/quickstart.py", {}),
    ("configs/quickstart.py", {"runtime": "threads"}),
    ("configs/quickstart.py", {"runtime": "ray"}),
    ("configs/speech_partitioned.py", {}),
    ("configs/digits_sandblaster.py", {}),
    ("configs/figure4/gpu.py", {}),
]


@pytest.mark.parametrize(("file", "more"), WALKED)
def test_every_field_has_an_effect_or_is_refused(file, more, handed):
    config = load_config(f"{file}:smoke")
    assign(config, more)
    before = handed(config)
    assert handed(config) == before  # else everything would seem to have an effect
    refused = set()
    fields = flat(defaults().to_dict()) | flat(config.to_dict())
    for name, value in fields.items():
        changed = config.copy_and_resolve_references()
        try:
            assign(changed, {name: other(config, name, value)})
            build.require_sound(changed)
        except ValueError:
            refused.add(name)
        else:
            assert handed(changed) != before, f"{name} is accepted, and ignored"
    assert len(fields) - len(refused) > 15
    assert not {"seed", "data_seed", "batch_size", "until_s", "event_log"} & refused
