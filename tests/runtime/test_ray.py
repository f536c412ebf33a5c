"""The Ray runtime: the rules of dbjax/runtime/interface.py among processes."""

import gc
import importlib
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dbjax
from dbjax.errors import ServiceError
from dbjax.replay import replay
from dbjax.runtime import Future, all_of
from dbjax.runtime.event_log import EventLog, Script
from dbjax.runtime.ray import RayOptions
from experiments.defaults import defaults
from tests import test_conformance as conformance
from tests.processes import LIMIT_S
from tests.runtime import lost_error
from tests.runtime.services import Log, Middle, Slow

pytest.importorskip("ray", reason="dbjax[ray] is not installed")
import ray.cloudpickle

from dbjax.runtime.ray.messages import Route, decode, encode, encode_all, sendable
from dbjax.runtime.ray.segments import Arena, forget

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

METHODS = ["downpour", "sgd", "sandblaster"]
TASK = conformance.TASK


def config(name, **kwargs):
    return conformance.config(importlib.import_module(f"dbjax.algorithms.{name}"), **kwargs)


def test_the_rules(runtime):
    large = conformance.RANDOM.normal(size=10**6)

    async def main(node, log, middle):
        calls = [log.call(Log.slow, "a"), log.call(Log.say, "b"), log.call(Log.slow, "c")]
        calls += [
            log.call(Log.say, large),
            log.call(Log.say, "small"),
        ]
        waiting = log.call(Log.wait)  # does not keep it from serving the others
        await all_of([*calls, log.call(Log.open)], list)
        with pytest.raises(ServiceError, match=r"log\.fail, called by main, failed at") as caught:
            await log.call(Log.fail)
        assert isinstance(caught.value.__cause__, OverflowError)
        with pytest.raises(TypeError, match="cannot be sent"):
            await log.call(Log.unsendable)
        first = await node.first([Future("never"), node.sleep(0.01)])
        node.record(step=1, loss=jnp.ones(()))
        return await waiting, first, await middle.call(Middle.relay, "word"), node.random().random()

    log = runtime.serve("log", Log)
    middle = runtime.serve("middle", Middle, log)
    ended = runtime.spawn("main", main, log, middle)
    end_s = runtime.run(until_s=LIMIT_S)
    opened, first, relayed, drawn = ended.result()
    said = log.call(Log.words).result()  # it answers the driver after the end too
    assert (opened, first, relayed, end_s < LIMIT_S) == ("open", 1, 6 + 2, True)
    kinds = [word if isinstance(word, str) else word.nbytes for word in said]
    assert kinds == ["a begins", "a ends", "b", "c begins", "c ends", 8 * 10**6, "small", "WORD"]
    reference = dbjax.runtime.VirtualRuntime()
    expected = reference.spawn("main", _draws)
    reference.run()
    assert drawn == expected.result()  # rule 9
    (row,) = [row for row in runtime._trace.rows if "loss" in row]
    assert row["node"] == "main"
    assert row["loss"] == 1.0
    assert {"slow", "say"} <= {span.kind for span in runtime._trace.spans if span.node == "main"}


def test_what_is_given_to_a_main_is_compiled_there_before_the_clock_starts(runtime):
    async def main(node, slow):
        return slow.compiled, node.now()

    ended = runtime.spawn("main", main, Slow())
    runtime.run(until_s=LIMIT_S)
    compiled, now_s = ended.result()
    assert compiled == 1
    assert now_s < 1


async def _draws(node):
    return node.random().random()


def test_an_error_that_nobody_awaits_ends_the_run(runtime):
    lost_error.require_end_by_lost_error(runtime, LIMIT_S)


def test_a_run_stops_at_its_time(runtime):
    async def endless(node):
        while True:
            await node.compute(len, "")

    runtime.spawn("endless", endless)
    assert runtime.run(until_s=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("name", METHODS)
def test_one_replica_is_the_same_as_in_virtual_time(name, cluster):
    cfg = config(name, replicas=1, shards=1)
    results = [dbjax.run(TASK, cfg, runtime=runtime) for runtime in ("virtual", "ray")]
    virtual, real = [result.summary for result in results]
    assert real["params_sha256"] == virtual["params_sha256"]
    assert real["clock"] == "wall"
    assert real.keys() == virtual.keys()


@pytest.mark.parametrize("name", METHODS)
def test_three_replicas_decrease_the_loss(name, cluster):
    lines = []
    cfg = config(name, replicas=3, shards=2)
    result = dbjax.run(TASK, cfg, runtime="ray", log=EventLog(lines.append))
    assert result.summary["full_loss"] < 0.2 * float(
        conformance.loss(TASK.params, (conformance.X, conformance.Y))
    )
    script = Script("".join(lines).splitlines(keepends=True))
    assert replay(TASK, cfg, script).params_sha256 == result.summary["params_sha256"]


def sent(message, route):
    """What arrives of a message, which Ray pickles."""
    encoded = encode(message, route)
    return decode(pickle.loads(ray.cloudpickle.dumps(encoded))), len(encoded.body)


@pytest.mark.parametrize("machine", ["the same machine", "another machine"])
def test_arrays_travel_as_memory_and_are_never_pickled(monkeypatch, machine):
    def refuse(self):
        raise AssertionError("a jax array was pickled")

    monkeypatch.setattr(type(jnp.zeros(1)), "__reduce__", refuse)
    shared = jnp.arange(10_000.0)
    message = {"a": shared, "b": [shared, np.arange(500)], "c": jnp.float32(2), "d": "text"}
    arena = Arena() if machine == "the same machine" else None
    found, pickled_bytes = sent(message, Route("reader", arena))
    assert pickled_bytes < 1000
    assert isinstance(found["a"], jax.Array)
    np.testing.assert_array_equal(found["a"], shared)
    np.testing.assert_array_equal(found["b"][0], shared)
    assert found["c"] == 2
    assert found["d"] == "text"
    np.testing.assert_array_equal(found["b"][1], np.arange(500))
    if arena is not None:
        (segment,) = arena.segments
        begins, place = segment.data.ctypes.data, found["a"].unsafe_buffer_pointer()
        assert place != begins  # mapped a second time
        segment.data[:4] = np.float32([7]).view(np.uint8)
        assert found["a"][0] == 7  # no copy
        assert segment.loan[0] == 1
        del found
        gc.collect()
        assert segment.loan[0] == 0


def test_the_wire_dtype_rounds_float32_and_nothing_else():
    message = [jnp.float32(1 + 2**-12), np.full(300, 1 + 2**-12), jnp.arange(300)]
    (rounded, double, whole), _ = sent(message, Route(dtype="bfloat16"))
    assert (rounded.dtype, float(rounded)) == (jnp.float32, 1.0)
    np.testing.assert_array_equal(double, message[1])
    np.testing.assert_array_equal(whole, message[2])


@pytest.mark.parametrize(
    "array",
    [
        jax.random.key(1),
        jnp.ones((300, 3), jnp.bfloat16),
        np.asfortranarray(np.arange(600.0).reshape(20, 30)),
        np.arange(600)[::2],
        np.array(["text", None], object),
        np.zeros(()),
        jnp.zeros((0, 3)),
    ],
    ids=lambda array: f"{type(array).__name__} {array.dtype} {array.shape}",
)
def test_arrays_of_every_kind_travel(array):
    found, _ = sent(array, Route())
    assert (type(found), found.dtype, found.shape) == (type(array), array.dtype, array.shape)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        found, array = jax.random.key_data(found), jax.random.key_data(array)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(array))


class NeedsTwo(Exception):
    """Pickle can write it, but cannot make it from its arguments."""

    def __init__(self, name, number):
        super().__init__(f"{name} {number}")


class Locked(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@pytest.mark.parametrize("error", [NeedsTwo("a", 1), Locked("text")], ids=["load", "dump"])
def test_an_error_that_cannot_travel_arrives_as_its_text(error):
    text = f"{type(error).__name__}: {error}"
    found, _ = sent(sendable(error), Route())
    assert (type(found), str(found)) == (RuntimeError, text)
    service_error = ServiceError("log.fail failed")
    service_error.__cause__ = error
    found, _ = sent(sendable(service_error), Route())
    assert (type(found), str(found)) == (ServiceError, "log.fail failed")
    assert (type(found.__cause__), str(found.__cause__)) == (RuntimeError, text)


def test_the_causes_of_errors_travel():
    try:
        try:
            raise KeyError("deep")
        except KeyError as error:
            raise ValueError("middle") from error
    except ValueError as error:
        top = ServiceError("top")
        top.__cause__ = error
    found, _ = sent(sendable(top), Route())
    assert isinstance(found, ServiceError)
    assert isinstance(found.__cause__, ValueError)
    assert isinstance(found.__cause__.__cause__, KeyError)


def test_nodes_share_their_arrays_and_need_no_module():
    data, params = np.arange(5000), jnp.ones(5000)

    def local(x):
        return x + data[1]

    encoded = encode_all({"a": (local, data), "b": (data, params), "c": [params, "small"], "d": 1})
    size = len(ray.cloudpickle.dumps(encoded))
    assert size < data.nbytes + params.nbytes + 10_000  # each once
    found = {name: decode(message) for name, message in encoded.items()}
    assert found["a"][0](1) == 2
    np.testing.assert_array_equal(found["b"][0], data)
    assert isinstance(found["c"][0], jax.Array)
    assert found["d"] == 1


def test_memory_is_used_again_when_nobody_reads_it():
    arena = Arena()
    route = Route("reader", arena)
    for number in range(3):
        found = sent(jnp.full(10_000, number), route)[0]
        assert found[0] == number
        del found
        gc.collect()
    assert len(arena.segments) == 1
    seen = sent(jnp.zeros(10_000), route)[0]
    sent(jnp.ones(10_000), route)
    assert seen[0] == 0
    assert len(arena.segments) == 2
    arena.take_back("reader")
    assert not any(segment.loan[0] for segment in arena.segments)
    forget(arena.owner)
    assert seen[0] == 0  # its memory stays until it is let go


def test_who_counts_as_dead_frees_nothing_that_others_read():
    arena = Arena()
    dead = sent(jnp.zeros(10_000), Route("dead", arena))[0]
    arena.take_back("dead")
    found = sent(jnp.ones(10_000), Route("reader", arena))[0]
    (segment,) = arena.segments
    del dead
    gc.collect()
    assert segment.loan[0] == 2
    assert found[0] == 1


def test_what_is_being_written_for_the_dead_is_not_lent_to_others(monkeypatch):
    """A process may die while a message to it is copied."""
    arena, copyto = Arena(), np.copyto

    def die(target, source):
        monkeypatch.setattr(np, "copyto", copyto)
        arena.take_back("dead")
        arena.lend("reader", [np.ones(2**20, np.uint8)])
        copyto(target, source)

    monkeypatch.setattr(np, "copyto", die)
    arena.lend("dead", [np.zeros(2**20, np.uint8)])
    of_dead, of_reader = arena.segments
    assert (of_dead.loan[0], of_reader.loan[0]) == (0, 2)
    assert of_reader.data[0] == 1


def test_a_file_of_another_process_is_not_read():
    """The number of a dead process may be used again."""
    lease, _ = Arena().lend("reader", [np.ones(2**16, np.uint8)])
    with pytest.raises(FileNotFoundError, match="has ended"):
        pickle.loads(pickle.dumps(lease._replace(inode=lease.inode + 1)))


def test_too_few_cpus_are_said_at_once(cluster):
    with pytest.raises(ValueError, match=r"2 processes need 60 CPUs, but the cluster has 4 CPUs"):
        dbjax.run(TASK, config("downpour", replicas=1, shards=1), runtime="ray",
                  ray=RayOptions(cpus=30.0))  # fmt: skip


def test_a_run_has_a_cluster_of_its_own_unless_it_says_otherwise():
    assert RayOptions().address == defaults().ray.address == "local"
    for address in ("auto", "10.0.0.1:6379"):
        assert RayOptions(address).address == address


def test_bad_options_are_refused(monkeypatch):
    for kwargs in ({"address": "here"}, {"cpus": -1.0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=f"ray.{next(iter(kwargs))}="):
            RayOptions(**kwargs)
    with pytest.raises(ValueError, match="ray options are for runtime='ray'"):
        dbjax.run(TASK, config("sgd"), ray=RayOptions())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"runtime=ray needs Ray: pip install 'dbjax\[ray\]'"):
        dbjax.run(TASK, config("sgd"), runtime="ray")
