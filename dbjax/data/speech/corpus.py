"""The random utterances of the corpus: words, speaker, speed and noise.

Utterance i of a corpus is a pure function of (seed, i), so every process generates the same one.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from dbjax.data.speech import espeak
from dbjax.data.speech.espeak import Voice
from dbjax.data.speech.mel import Floats, log_mel

TEST_SHARE = 0.1  # the fraction of utterances that are held out
_WORDS = 20_000  # size of the vocabulary: the most frequent words
_WORDS_PER_UTTERANCE = (5, 13)
_WORDS_PER_MINUTE = (130, 220)
_PITCH = (20, 80)
_SIGNAL_TO_NOISE_DB = (10.0, 35.0)
# Speakers that sound like people; the others are robots, whispers and demons.
_SPEAKERS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8",
    "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee",
    "Marco", "Mario", "Michael", "Mike", "Reed", "adam", "anika", "antonio", "belinda",
    "benjamin", "boris", "caleb", "david", "ed", "edward", "gustave", "ian", "john", "linda",
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob",
    "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
_HELD_OUT_EVERY = 6  # every sixth speaker appears in the hold-out set only


@dataclasses.dataclass(frozen=True)
class Recording:
    """One utterance as it is stored.

    Attributes:
      test: whether the utterance belongs to the hold-out set; no speaker is in both sets.
      voice: the accent and the speaker, as "accent+speaker".
      frames: log mel energies, float32 [frames, 40].
      phones: the phones in the order in which they are spoken, in IPA.
      begins_s: the time in seconds at which each phone begins, float32 [phones].
    """

    test: bool
    voice: str
    frames: Floats
    phones: tuple[str, ...]
    begins_s: Floats


def record(seed: int, number: int) -> Recording:
    """Synthesises utterance `number` of the corpus with the given seed."""
    random = np.random.default_rng([seed, number])
    test = bool(random.random() < TEST_SHARE)
    names, chances = _words()
    count = random.integers(*_WORDS_PER_UTTERANCE, endpoint=True)
    words = names[np.searchsorted(chances, random.random(count))]
    voice = Voice(
        accent=str(random.choice(espeak.accents())),
        speaker=str(random.choice(speakers(test=test))),
        words_per_minute=int(random.integers(*_WORDS_PER_MINUTE)),
        pitch=int(random.integers(*_PITCH)),
        pitch_range=int(random.integers(*_PITCH)),
    )
    spoken = espeak.synthesise(" ".join(words), voice)
    noisy = _with_noise(spoken.samples, random.uniform(*_SIGNAL_TO_NOISE_DB), random)
    begins = np.array(spoken.begins, np.float32) / np.float32(spoken.sample_rate)
    return Recording(test, voice.name, log_mel(noisy, spoken.sample_rate), spoken.phones, begins)


def speakers(*, test: bool) -> tuple[str, ...]:
    """The speakers of the training or hold-out set that the installed package has."""
    known = [name for name in _SPEAKERS if name in espeak.speakers()]
    return tuple(s for i, s in enumerate(known) if (i % _HELD_OUT_EVERY == 0) == test)


def _with_noise(samples: Floats, ratio_db: float, random: np.random.Generator) -> Floats:
    """Adds white noise whose power is `ratio_db` decibels below the utterance's own."""
    power = float(np.mean(samples**2)) * 10 ** (-ratio_db / 10)
    return samples + random.normal(scale=np.sqrt(power), size=len(samples)).astype(np.float32)


@functools.cache
def _words() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """English words and their cumulative frequencies, normalised (wordfreq, Speer 2022)."""
    try:
        import wordfreq
    except ImportError as error:
        raise ValueError(
            "speech_frames draws words by frequency: pip install 'dbjax[speech]'"
        ) from error
    found = wordfreq.get_frequency_dict("en", "small")
    kept = sorted((w for w in found if w.isascii() and w.isalpha()), key=lambda w: (-found[w], w))
    names = np.array(kept[:_WORDS])
    shares = np.cumsum([found[name] for name in kept[:_WORDS]])
    return names, shares / shares[-1]
