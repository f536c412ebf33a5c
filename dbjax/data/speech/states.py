"""Maps aligned phones to tied context-dependent states, the classes of section 5.

A frame's context is (left phone, phone, right phone, third of the phone). Each of the most
frequent contexts of the training data has a state of its own. Every other context backs off to the
state of its (phone, third), provided that all these fit into three quarters of the states;
otherwise to the state of its phone. If there are too many phones even for that, the rarest ones
share a state.

Differs from the paper: it says only that there are "several thousand acoustic states".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.data.speech.espeak import SILENCE
from dbjax.data.speech.mel import frame_centres_s

Ints = np.ndarray[Any, np.dtype[np.int64]]
_THIRDS = 3


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The phone spoken in each frame of one utterance.

    Attributes:
      phones: the phones of the utterance in order; the first is silence.
      phone_of_frame: the index in `phones` of each frame's phone, int64 [frames].
      third_of_frame: the third of that phone (0, 1, 2) in which the frame lies, int64 [frames].
    """

    phones: tuple[str, ...]
    phone_of_frame: Ints
    third_of_frame: Ints


def align(frames: int, phones: list[str], begins_s: np.ndarray[Any, Any]) -> Alignment:
    """Finds the phone spoken in the middle of every frame; before the first phone is silence.

    Args:
      frames: the number of frames.
      phones: the phones of the utterance in order.
      begins_s: the time in seconds at which each phone begins, [phones].
    """
    times = frame_centres_s(frames)
    begins = np.concatenate([[0.0], begins_s])
    ends = np.append(begins[1:], max(times[-1], begins[-1]) + 1e-6)
    index = np.searchsorted(begins, times, side="right") - 1
    share = (times - begins[index]) / np.maximum(ends[index] - begins[index], 1e-9)
    thirds = np.clip((share * _THIRDS).astype(np.int64), 0, _THIRDS - 1)
    return Alignment((SILENCE, *phones), index, thirds)


@dataclasses.dataclass(frozen=True)
class Tying:
    """The map from contexts to states; `tie` makes it from training data.

    Attributes:
      phones: the number of each phone that occurs in the training data.
      num_states: the number of states.
      owners: the codes of the contexts that have a state of their own, sorted.
      states: the states of these contexts.
      back_off: the state of each (phone, third) for all other contexts, [phones + 1, 3]; the last
        row is for phones that do not occur in the training data.
    """

    phones: dict[str, int]
    num_states: int
    owners: Ints
    states: Ints
    back_off: Ints

    def label(self, alignment: Alignment) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns the state of every frame, int32 [frames]."""
        code, phone, third = _codes(alignment, self.phones)
        place = np.minimum(np.searchsorted(self.owners, code), len(self.owners) - 1)
        owned = self.owners[place] == code
        return np.where(owned, self.states[place], self.back_off[phone, third]).astype(np.int32)


def tie(alignments: list[Alignment], num_states: int) -> Tying:
    """Chooses which contexts share a state, from the alignments of the training data.

    Args:
      alignments: one alignment for each utterance.
      num_states: the number of states, at least 2.

    Raises:
      ValueError: the data has too few contexts for `num_states`, or that is below 2.
    """
    if num_states < 2:
        raise ValueError(f"num_states={num_states} must be at least 2")
    names = sorted({phone for alignment in alignments for phone in alignment.phones})
    phones = {name: number for number, name in enumerate(names)}
    coded = [_codes(alignment, phones) for alignment in alignments]
    contexts, times = np.unique(np.concatenate([c for c, _, _ in coded]), return_counts=True)
    frames_of_phone = np.bincount(np.concatenate([p for _, p, _ in coded]), minlength=len(names))
    back_off = _back_off(frames_of_phone, num_states)
    own = num_states - (int(back_off.max()) + 1)
    if own > len(contexts):
        raise ValueError(
            f"num_states={num_states} is more than this data's {len(contexts)} contexts need: "
            "raise num_frames"
        )
    chosen = np.sort(contexts[np.lexsort((contexts, -times))[:own]])
    return Tying(phones, num_states, chosen, int(back_off.max()) + 1 + np.arange(own), back_off)


def _back_off(frames_of_phone: Ints, num_states: int) -> Ints:
    """The states of (phone, third); unknown phones (the last row) share the rarest phone's."""
    phones, budget = len(frames_of_phone), max(1, num_states * 3 // 4)
    if phones * _THIRDS <= budget:
        states = np.arange(phones * _THIRDS).reshape(phones, _THIRDS)
    else:
        rank = np.argsort(np.argsort(-frames_of_phone, kind="stable"), kind="stable")
        states = np.repeat(np.minimum(rank, budget - 1)[:, None], _THIRDS, axis=1)
    return np.concatenate([states, states[[np.argmin(frames_of_phone)]]])


def _codes(alignment: Alignment, phones: dict[str, int]) -> tuple[Ints, Ints, Ints]:
    """Returns for each frame the code of its context, the number of its phone, and its third."""
    unknown = len(phones)
    of_utterance = np.array([phones.get(phone, unknown) for phone in alignment.phones])
    silence = phones.get(SILENCE, unknown)
    padded = np.concatenate([[silence], of_utterance, [silence]])
    index, third = alignment.phone_of_frame, alignment.third_of_frame
    left, phone, right = padded[index], padded[index + 1], padded[index + 2]
    base = unknown + 1
    return ((left * base + phone) * base + right) * _THIRDS + third, phone, third
