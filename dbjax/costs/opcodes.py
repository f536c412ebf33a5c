"""HLO's opcodes, by what they cost."""

from __future__ import annotations

_ARITHMETIC = """
    abs add and atan2 cbrt ceil clamp compare complex cosine count-leading-zeros divide erf
    exponential exponential-minus-one floor imag is-finite log log-plus-one logistic maximum
    minimum multiply negate not or popcnt power real remainder rng rng-bit-generator
    round-nearest-afz round-nearest-even rsqrt select shift-left shift-right-arithmetic
    shift-right-logical sign sine sqrt stochastic-convert subtract tan tanh xor
"""
_NAMING = """
    add-dependency after-all async-update bitcast constant domain get-dimension-size
    get-tuple-element opt-barrier optimization-barrier parameter partition-id replica-id tuple
"""
_MOVING = """
    all-gather all-gather-start all-reduce all-reduce-start all-to-all bitcast-convert broadcast
    collective-broadcast collective-permute collective-permute-start concatenate convert copy
    copy-start dynamic-reshape dynamic-slice dynamic-update-slice gather iota pad
    reduce-precision reduce-scatter reshape reverse rng-get-and-update-state set-dimension-size
    slice transpose
"""
ARITHMETIC = frozenset(_ARITHMETIC.split())  # one operation for each output
MOVING = frozenset(_MOVING.split())  # memory traffic only
FREE = frozenset(_NAMING.split())  # neither; so is every -done
SLICES = frozenset(["dynamic-slice", "gather", "slice"])  # read what they take
UPDATES = frozenset(["dynamic-update-slice", "scatter"])  # write what they put, if in place
