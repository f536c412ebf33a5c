"""The network of 1.7 billion parameters on 81 devices: how much each computes, and what travels."""

import collections
import math

import pytest

from dbjax.model_parallel.halo import messages
from dbjax.model_parallel.tiles import same
from dbjax.models import VisionConfig
from dbjax.models.locally_connected import NEIGHBOURHOOD
from tests.model_parallel import large_vision_run
from tests.processes import printed

CONFIG, SIDE, BATCH = VisionConfig(), 9, large_vision_run.BATCH


@pytest.fixture(scope="module")
def found():
    return printed("tests.model_parallel.large_vision_run")


def test_each_device_does_little_more_than_its_share(found):
    assert found["unknown"] == []
    ratio = found["cut_flops"] / (found["whole_flops"] / SIDE**2)
    assert 1.15 < ratio < 1.3  # tiles of 11, 10, 9 for 91/9, 82/9, 73/9 are 1.2 already


def halo(reads, channels):
    """Bytes of each message of one window: along rows, then along columns of what came."""
    block = math.ceil(reads.inputs / SIDE)
    for across in (block, reads.length(SIDE)):
        for message in messages(reads, SIDE):
            if message.offset:
                yield 4 * (message.end - message.begin) * across * channels * BATCH


def test_what_travels_are_halos_and_the_output_layers_features(found):
    """Of gradients of parameters nothing does."""
    sent = collections.Counter()
    others = collections.Counter()
    for c in found["collectives"]:
        if c["kind"] == "collective-permute":
            sent[c["input_bytes"]] += 1
        else:
            others[c["kind"], c["input_bytes"]] += 1
    forward = collections.Counter()
    for stage, (filters, pool) in enumerate(zip(CONFIG.filters, CONFIG.pools, strict=True)):
        if stage:
            forward.update(halo(filters, CONFIG.units))
        forward.update(halo(pool, CONFIG.units))
        for _ in range(2):  # mean and deviation, over units
            forward.update(halo(same(pool.outputs, NEIGHBOURHOOD), 1))
    assert sent == collections.Counter({size: 2 * n for size, n in forward.items()})  # and back
    features = 4 * CONFIG.units * BATCH  # one position of 9 x 9 on each device
    assert others == {
        ("all-gather", features): 1,
        ("all-gather", features * SIDE): 1,
        ("reduce-scatter", features * SIDE**2): 1,
        ("reduce-scatter", features * SIDE): 1,
        ("all-reduce", 4): 1,  # the loss
    }
