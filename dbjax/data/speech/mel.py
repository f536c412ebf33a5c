"""Log mel energies: 25 ms windows every 10 ms and 40 triangular filters (section 5)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
ENERGIES = 40
WINDOW_S = 0.025
HOP_S = 0.010
_LOWEST_HZ, _HIGHEST_HZ = 64.0, 8000.0
_FLOOR = 1e-8  # about -80 dB of full scale


def log_mel(samples: Floats, sample_rate: int) -> Floats:
    """Computes the natural logarithms of mel filter energies.

    Args:
      samples: the signal, float32 [samples].
      sample_rate: samples per second.

    Returns:
      Log energies, float32 [frames, 40]; frame i begins at i * 10 ms.
    """
    length = round(WINDOW_S * sample_rate)
    count = max(0, int((len(samples) - length) / (HOP_S * sample_rate)) + 1)
    begins = np.round(np.arange(count) * HOP_S * sample_rate).astype(np.int64)
    windows = samples[begins[:, None] + np.arange(length)] * np.hamming(length)
    size = 1 << (length - 1).bit_length()
    power = np.abs(np.fft.rfft(windows, size)) ** 2 / length
    energies: Floats = np.log(power @ _filters(size, sample_rate) + _FLOOR).astype(np.float32)
    return energies


def frame_centres_s(frames: int) -> np.ndarray[Any, Any]:
    """The time of the middle of each frame, in seconds, [frames]."""
    return np.arange(frames) * HOP_S + WINDOW_S / 2


@functools.cache
def _filters(size: int, sample_rate: int) -> np.ndarray[Any, Any]:
    """Triangular filters equally spaced on the mel scale, [size / 2 + 1, 40].

    The scale is mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987). Neighbouring filters
    overlap by half (Davis & Mermelstein 1980).
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    corners = 700 * (10 ** (np.linspace(low, high, ENERGIES + 2) / 2595) - 1)
    hz = np.arange(size // 2 + 1)[:, None] * sample_rate / size
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (hz - left) / (middle - left), (right - hz) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling))
