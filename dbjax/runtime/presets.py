"""Predefined clusters. A comment at each number says whether it is sourced, assumed or fitted."""

from __future__ import annotations

import dataclasses

from dbjax.runtime.cluster import Cluster, Machine

# Dean et al. 2012 say no more about their machines than "at most 20 cores" of each.
GOOGLE_2012 = Cluster(
    compute_s="costs",
    machine=Machine(
        # Fitted to Figure 3's speech curve, together with message_s, for mini-batches of 100
        # (`python -m experiments.figure3`): the rate that a machine achieves, whatever limits it.
        flops_per_s=72.9e9,
        bandwidth_bytes_per_s=125e6,  # assumed: a card of 1 Gb/s
        law="lognormal",
        sigma=0.2,  # assumed
    ),
    latency_s=100e-6,  # assumed: the way through switches and two kernels
    message_s=583e-6,  # fitted
)

# A machine with one GPU board: a replica on it needs no network.
GPU_2012 = Machine(
    # NVIDIA Tesla M2090 board specification: 1331e9 FLOP/s in single precision, 177e9 bytes/s with
    # ECC off. Programs are assumed to reach 0.6 and 0.8 of these.
    flops_per_s=0.6 * 1331e9,
    memory_bandwidth_bytes_per_s=0.8 * 177e9,
    law="lognormal",
    sigma=0.05,  # assumed
)

# Each machine has one accelerator.
H100_2023 = Cluster(
    compute_s="costs",
    machine=Machine(
        # NVIDIA H100 SXM data sheet: TF32 tensor cores 494.7e12 FLOP/s dense, HBM3 3.35e12
        # bytes/s. Programs are assumed to reach half and 0.8 of these.
        flops_per_s=0.5 * 494.7e12,
        memory_bandwidth_bytes_per_s=0.8 * 3.35e12,
        bandwidth_bytes_per_s=50e9,  # NVIDIA DGX H100 data sheet: 400 Gb/s for each accelerator
        law="lognormal",
        sigma=0.05,  # assumed
    ),
    latency_s=5e-6,  # assumed
    message_s=1e-6,  # assumed
)


def with_speeds(cluster: Cluster, *, flops_per_s: float, message_s: float) -> Cluster:
    """Returns the same cluster with other values for the two fitted numbers.

    Args:
      cluster: the cluster.
      flops_per_s: `Machine.flops_per_s` of its machine.
      message_s: `Cluster.message_s`.
    """
    machine = dataclasses.replace(cluster.machine, flops_per_s=flops_per_s)
    return dataclasses.replace(cluster, machine=machine, message_s=message_s)
