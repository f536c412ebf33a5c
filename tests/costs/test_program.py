"""Costs of programs that are known by hand: sizes are all different, so a mix-up shows."""

import math

import jax
import jax.numpy as jnp
import pytest

from dbjax.costs.program import Collective, costs, costs_of
from tests.processes import printed

EVERYONE = [list(range(8))]


@pytest.fixture(scope="module")
def programs():
    """Costs of programs compiled for 8 devices, in a process that has them."""
    return printed("tests.costs.programs", flags="")  # compiled as anybody's


def collectives(found):
    return [each for phase in found["phases"] for each in phase["collectives"]]


def one(found):
    (each,) = collectives(found)
    return each


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


# of one device


def test_a_product_whole():
    found = costs(jax.jit(jnp.matmul), array(64, 512), array(512, 128))
    assert found.flops == 2 * 64 * 512 * 128
    assert found.bytes == 4 * (64 * 512 + 512 * 128 + 64 * 128)
    assert found.memory.argument_bytes == 4 * (64 * 512 + 512 * 128)
    assert found.memory.output_bytes == 4 * 64 * 128
    assert (found.devices, found.collectives, found.sent_bytes, found.rounds) == (1, (), 0, 0)
    assert found.unknown == ()
    assert len(found.phases) == 1


@pytest.mark.parametrize("size", [3, 16, 300])  # small ones are not handed to the library
def test_a_batched_product(size):
    found = costs(jax.jit(jnp.matmul), array(5, size, 40), array(5, 40, size))
    assert found.flops == 2 * 5 * size * 40 * size


def test_a_donated_argument_is_an_alias():
    double = lambda x: x * 2  # noqa: E731
    found = costs(jax.jit(double, donate_argnums=0), array(30, 40))
    assert found.memory.alias_bytes == found.memory.output_bytes == 4 * 30 * 40
    assert costs(jax.jit(double), array(30, 40)).memory.alias_bytes == 0


def test_loops_are_counted_by_their_trips():
    def layers(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    compiled = jax.jit(layers).lower(array(64, 32), array(7, 32, 32)).compile()
    found = costs_of(compiled)
    one_trip = 2 * 64 * 32 * 32
    assert found.flops == pytest.approx(7 * one_trip, abs=7 * 4)  # the counter, the condition
    assert compiled.cost_analysis()["flops"] == pytest.approx(one_trip, abs=4)  # XLA: one trip


def test_a_loop_reads_the_slices_it_takes():
    def total(trips):
        def layers(x, ws):
            return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

        return costs(jax.jit(layers), array(64, 32), array(trips, 32, 32)).bytes

    each = (total(21) - total(14)) / 7
    assert each == (total(14) - total(7)) / 7  # not all matrices in each trip: that is quadratic
    matrix, rows = 4 * 32 * 32, 4 * 64 * 32
    assert each >= matrix + 2 * rows


def test_a_loop_of_unknown_trips_is_named():
    fn = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x))
    found = costs(fn, array(16, 16))
    assert found.flops == pytest.approx(2 * 16 * 16, abs=2)  # one trip: subtract, and sum
    (words,) = found.unknown
    assert words.startswith("while")


def test_a_call_of_unknown_flops_is_named():
    found = costs(jax.jit(jnp.linalg.cholesky), array(64, 64))
    assert any("lapack_spotrf" in words for words in found.unknown)


def test_a_branch_costs_what_the_costlier_costs():
    fn = jax.jit(lambda p, x: jax.lax.cond(p, lambda x: x @ x, lambda x: x + 1, x))
    found = costs(fn, array(dtype=jnp.bool_), array(64, 64))
    assert found.flops == 2 * 64**3


def test_what_is_not_jitted_is_refused():
    with pytest.raises(TypeError, match=r"pass jax\.jit\(fn\)"):
        costs(lambda x: x + 1, array(3))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 7 * 800),
        ("all-reduce", 2 * 7 * 100),
        ("reduce-scatter", 7 * 100),
        ("all-to-all", 7 * 100),
        ("collective-broadcast", 800),
    ],
)
def test_sent_bytes(kind, sent):
    assert Collective(kind, 800, 0, group_size=8).sent_bytes == sent
    assert Collective(kind, 800, 0, group_size=1).sent_bytes == 0


def test_sent_bytes_of_a_permutation():
    assert Collective("collective-permute", 800, 800, 2, pairs=((0, 1), (1, 0))).sent_bytes == 800
    assert Collective("collective-permute", 800, 800, 2, pairs=((0, 0), (1, 1))).sent_bytes == 0


# of eight devices


PRODUCT = 2 * 64 * 512 * 128


def test_columns_and_all_gather(programs):
    found = programs["gather"]
    assert found["devices"] == 8
    assert found["flops"] == PRODUCT / 8
    assert one(found) == {
        "kind": "all-gather",
        "input_bytes": 4 * 64 * 16,
        "output_bytes": 4 * 64 * 128,
        "group_size": 8,
        "pairs": [],
        "repeats": 1,
        "groups": EVERYONE,
    }
    assert found["memory"]["argument_bytes"] == 4 * (64 * 512 + 512 * 16)
    assert found["memory"]["output_bytes"] == 4 * 64 * 128


def test_rows_and_psum(programs):
    found = programs["psum"]
    assert found["flops"] == PRODUCT / 8  # the sum's own additions are not counted
    each = one(found)
    assert (each["kind"], each["group_size"]) == ("all-reduce", 8)
    assert each["input_bytes"] == each["output_bytes"] == 4 * 64 * 128
    assert found["memory"]["argument_bytes"] == 4 * (64 + 128) * 64
    traffic = 4 * ((64 + 128) * 64 + 64 * 128)
    assert found["bytes"] == traffic + 2 * each["input_bytes"]


def test_rows_and_psum_scatter(programs):
    found = programs["psum_scatter"]
    each = one(found)
    assert found["flops"] == PRODUCT / 8
    assert (each["kind"], each["group_size"]) == ("reduce-scatter", 8)
    assert (each["input_bytes"], each["output_bytes"]) == (4 * 64 * 128, 4 * 8 * 128)


def test_a_halo(programs):
    before, after = programs["halo"]["phases"]
    (each,) = before["collectives"]
    assert (each["kind"], each["group_size"], each["groups"]) == ("collective-permute", 2, [])
    assert each["pairs"] == [[i, i + 1] for i in range(7)]
    assert each["input_bytes"] == each["output_bytes"] == 4 * 8 * 32
    assert (before["flops"], after["flops"], after["collectives"]) == (0, 8 * 32, [])


def test_all_to_all(programs):
    each = one(programs["all_to_all"])  # a tuple of eight pieces, on a CPU
    assert (each["kind"], each["group_size"], each["groups"]) == ("all-to-all", 8, EVERYONE)
    assert each["input_bytes"] == each["output_bytes"] == 4 * 8 * 128


def test_a_psum_in_a_scan(programs):
    each = one(programs["scan"])
    assert (each["kind"], each["repeats"]) == ("all-reduce", 5)
    assert each["input_bytes"] == 4 * 32 * 32
    (phase,) = (phase for phase in programs["scan"]["phases"] if phase["collectives"])
    assert phase["repeats"] == 5
    assert phase["flops"] == pytest.approx(2 * 32**3, abs=4)  # the counter, the condition
    assert programs["scan"]["flops"] == pytest.approx(5 * 2 * 32**3, abs=5 * 4)


def test_trips_of_nested_loops_multiply(programs):
    assert one(programs["nested"])["repeats"] == 3 * 5
    assert programs["nested"]["flops"] == pytest.approx(3 * 5 * 2 * 32**3, abs=3 * 6 * 4)


def test_phases_follow_dependence_and_not_the_schedule(programs):
    first, second = programs["two_rounds"]["phases"]
    assert [each["kind"] for each in first["collectives"]] == ["all-reduce"]
    assert [each["kind"] for each in second["collectives"]] == ["reduce-scatter"]
    assert first["flops"] == PRODUCT / 8 + 2 * 128**3  # also what is aside
    assert second["flops"] == 2 * 64 * 128 * 128


def test_a_branch_that_communicates_is_the_costlier(programs):
    each = one(programs["branches"])
    assert (each["kind"], each["input_bytes"]) == ("all-reduce", 4 * 64 * 64)
    assert programs["branches"]["flops"] == 0


def test_groups_along_the_axes_of_a_mesh(programs):
    along_a, along_b = collectives(programs["axes"])
    assert along_a["groups"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert along_b["groups"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (along_a["group_size"], along_b["group_size"]) == (2, 4)
    assert len(programs["axes"]["phases"]) == 1  # neither waits for the other


def test_what_the_partitioner_puts_in(programs):
    each = one(programs["gspmd"])
    assert programs["gspmd"]["flops"] == PRODUCT / 4
    assert (each["kind"], each["group_size"]) == ("all-reduce", 4)
    assert each["groups"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert each["input_bytes"] == 4 * 64 * 128


def test_gradients_of_two_layers(programs):
    found = programs["data_parallel"]
    products = 2 * 64 * (2 * 128 * 256 + 3 * 256 * 32)  # the first needs none for its input
    assert products < found["flops"] < 1.02 * products  # activations, loss
    each = one(found)  # combined into one, of a tuple
    assert each["kind"] == "all-reduce"
    assert each["input_bytes"] == each["output_bytes"] == 4 * (128 * 256 + 256 * 32 + 1)


def test_ten_terabytes_are_not_allocated(programs):
    found = programs["huge"]
    size = 8 * 312_500 * 1_000_000
    assert found["memory"]["argument_bytes"] == 4 * size / 8 == 10e12 / 8
    assert found["flops"] == size / 8
    assert collectives(found) == []
    assert programs["live_arrays"] == 0


def test_totals_are_sums_over_phases_and_trips(programs):
    for found in (found for name, found in programs.items() if name != "live_arrays"):
        for what in ("flops", "bytes"):
            total = math.fsum(phase[what] * phase["repeats"] for phase in found["phases"])
            assert found[what] == total
        assert found["unknown"] == []
