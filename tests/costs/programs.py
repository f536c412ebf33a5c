"""Programs of 8 devices whose costs test_costs.py knows by hand; prints them as JSON.

A process of its own: the number of devices is settled when the backend starts.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dbjax.costs.program import costs

jax.config.update("jax_num_cpu_devices", 8)
MESH = jax.make_mesh((8,), ("m",), axis_types=(AxisType.Auto,))
GRID = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def array(*dims, sharding=(), mesh=MESH, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*sharding)))


def mapped(fn, in_specs, out_specs, mesh=MESH):
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


def gather(x, w):
    return jax.lax.all_gather(x @ w, "m", axis=1, tiled=True)


def scan(x, ws):
    return jax.lax.scan(lambda x, w: (jax.lax.psum(x @ w, "m"), None), x, ws)[0]


def nested(x, ws):
    return jax.lax.fori_loop(0, 3, lambda _, x: scan(x, ws), x)


def two_rounds(x, w, v):
    h = jax.lax.psum(x @ w, "m")
    aside = v @ v  # depends on no communication, wherever it is scheduled
    return jax.lax.psum_scatter(h @ v, "m", tiled=True), aside


def branches(flag, x):
    summed = lambda x: jax.lax.psum(x, "m")  # noqa: E731
    return jax.lax.cond(flag, summed, lambda x: x @ x, x)


def data_parallel(params, x, y):
    def loss(params):
        h = jnp.maximum(x @ params[0], 0.0)
        return jnp.mean((h @ params[1] - y) ** 2)

    return jax.value_and_grad(loss)(params)


HALO = [(i, i + 1) for i in range(7)]
PROGRAMS = {
    "gather": (
        mapped(gather, (P(), P(None, "m")), P()),
        [array(64, 512), array(512, 128, sharding=(None, "m"))],
    ),
    "psum": (
        mapped(lambda x, w: jax.lax.psum(x @ w, "m"), (P(None, "m"), P("m")), P()),
        [array(64, 512, sharding=(None, "m")), array(512, 128, sharding=("m",))],
    ),
    "psum_scatter": (
        mapped(
            lambda x, w: jax.lax.psum_scatter(x @ w, "m", tiled=True),
            (P(None, "m"), P("m")),
            P("m"),
        ),
        [array(64, 512, sharding=(None, "m")), array(512, 128, sharding=("m",))],
    ),
    "halo": (
        mapped(lambda x: x + jax.lax.ppermute(x, "m", HALO), P("m"), P("m")),
        [array(64, 32, sharding=("m",))],
    ),
    "all_to_all": (
        mapped(lambda x: jax.lax.all_to_all(x, "m", 1, 0, tiled=True), P("m"), P(None, "m")),
        [array(64, 128, sharding=("m",))],
    ),
    "scan": (
        mapped(scan, (P("m"), P()), P("m")),
        [array(256, 32, sharding=("m",)), array(5, 32, 32)],
    ),
    "nested": (
        mapped(nested, (P("m"), P()), P("m")),
        [array(256, 32, sharding=("m",)), array(5, 32, 32)],
    ),
    "two_rounds": (
        mapped(two_rounds, (P(None, "m"), P("m"), P()), (P("m"), P())),
        [array(64, 512, sharding=(None, "m")), array(512, 128, sharding=("m",)), array(128, 128)],
    ),
    "branches": (mapped(branches, (P(), P()), P()), [array(dtype=jnp.bool_), array(64, 64)]),
    "axes": (
        mapped(
            lambda x: (jax.lax.psum(x, "a"), jax.lax.psum(x, "b")),
            P("a", "b"),
            (P(None, "b"), P("a")),
            GRID,
        ),
        [array(64, 64, sharding=("a", "b"), mesh=GRID)],
    ),
    "gspmd": (
        jax.jit(lambda x, w: x @ w, out_shardings=NamedSharding(GRID, P())),
        [
            array(64, 512, sharding=(None, "b"), mesh=GRID),
            array(512, 128, sharding=("b",), mesh=GRID),
        ],
    ),
    "data_parallel": (
        jax.jit(data_parallel, out_shardings=NamedSharding(MESH, P())),
        [
            [array(128, 256), array(256, 32)],
            array(512, 128, sharding=("m",)),
            array(512, 32, sharding=("m",)),
        ],
    ),
    "huge": (
        jax.jit(lambda x: x * 2.0, out_shardings=NamedSharding(MESH, P("m"))),
        [array(8, 312_500, 1_000_000, sharding=("m",))],
    ),
}


def main():
    found = {name: dataclasses.asdict(costs(fn, *args)) for name, (fn, args) in PROGRAMS.items()}
    found["live_arrays"] = len(jax.live_arrays())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
