"""From a config to the library's own types, field by field."""

import dbjax
from experiments import algorithms, build, construct
from experiments.command_line import load_config

QUICKSTART = "configs/quickstart.py:smoke"


def quickstart(**fields):
    config = load_config(QUICKSTART)
    with config.unlocked(), config.ignore_type():
        for name, value in fields.items():
            config[name] = value
    return config


def test_what_a_run_is_told():
    config = quickstart(until_s=8.0, evaluations=5, seed=3, data_seed=4)
    config.checkpoint.every_s, config.checkpoint.every_updates = 9.0, 70
    told = build.run_arguments(config)
    assert told["until_s"] == 8.0
    assert told["evaluate_every_s"] == 8.0 / 5
    assert told["seed"] == 3
    assert told["checkpoint_every"] == dbjax.Every(9.0, 70)
    assert told["ray"] is None
    assert told["cluster"] == build.cluster(config)
    endless = build.run_arguments(quickstart(until_s=None))
    assert (endless["until_s"], endless["evaluate_every_s"]) == (None, None)


def test_a_task_has_the_seeds_and_the_size_of_the_config():
    config = quickstart(seed=3, data_seed=4, batch_size=7)
    task = build.task(config)
    assert (task.seed, task.batch_size) == (4, 7)
    assert task.sharding is None


def test_every_field_of_a_cluster_reaches_it():
    config = quickstart()
    config.cluster.update(latency_s=0.5, compute_s=2.0, size_scale=3.0, seed=9)
    config.cluster.machine.update(speed=0.25, law="exponential", sigma=0.0, cards=2)
    with config.cluster.unlocked():
        config.cluster.machines = {"replica/0": {"speed": 0.125}}
    made = build.cluster(config)
    assert (made.latency_s, made.compute_s, made.size_scale, made.seed) == (0.5, 2.0, 3.0, 9)
    machine = made.machine_of("replica/1")
    assert (machine.speed, machine.law, machine.cards) == (0.25, "exponential", 2)
    assert made.machine_of("replica/0").speed == 0.125
    assert build.cluster(quickstart(runtime="threads")) is None
    assert build.clock(quickstart(runtime="threads")) == "wall"


def test_a_method_has_its_options_and_its_rule():
    config = quickstart()
    config.options.update(replicas=3, shards=2)
    method = algorithms.algorithm(config)
    assert (method.replicas, method.shards) == (3, 2)
    updates, _ = construct.rule({"name": "sgd", "learning_rate": 0.25}).update([1.0], (None, None))
    assert updates == [-0.25]
    assert algorithms.method({"name": "lbfgs", "memory": 4}).memory == 4
