"""Synthesises speech with eSpeak NG, called through ctypes, and reports where each phone begins.

eSpeak NG is free software under the GPL, version 3; the package `espeakng-loader` ships its
library and voices. Only this module uses it, and only while data is being generated.

The library keeps state between utterances (phases, noise), so the same text would never sound the
same twice. This module therefore reloads the library and seeds its noise for every utterance: that
takes 4 ms, and makes an utterance a pure function of its arguments.
"""

from __future__ import annotations

import _ctypes
import ctypes
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

_SYNCHRONOUS, _PHONEME_EVENTS, _IPA = 2, 1, 2  # constants of speak_lib.h
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8, _FROM_CHARACTER = 1, 1
_LIST_END, _PHONEME = 0, 7
_STRESS = str.maketrans("", "", "ˈˌ")
SILENCE = "_"


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice: an English accent, a speaker, and a manner of speaking.

    Attributes:
      accent: the name of an accent, such as "en-us".
      speaker: the name of a voice variant, such as "f3".
      words_per_minute: the speed.
      pitch: the mean pitch on eSpeak's scale of 0 .. 100.
      pitch_range: the variation of pitch on eSpeak's scale of 0 .. 100.
    """

    accent: str
    speaker: str
    words_per_minute: int = 175
    pitch: int = 50
    pitch_range: int = 50

    @property
    def name(self) -> str:
        """The name by which eSpeak NG knows accent and speaker."""
        return f"{self.accent}+{self.speaker}"


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Synthesised speech with its phones.

    Attributes:
      samples: the signal, in -1 .. 1, float32 [samples].
      sample_rate: samples per second.
      phones: the phones in IPA, without stress marks.
      begins: the index of the sample at which each phone begins.
    """

    samples: np.ndarray[Any, np.dtype[np.float32]]
    sample_rate: int
    phones: tuple[str, ...]
    begins: tuple[int, ...]


def synthesise(text: str, voice: Voice) -> Utterance:
    """Speaks `text` with the given voice. Not thread-safe.

    Raises:
      ValueError: eSpeak NG has no such voice, or is not installed.
    """
    loader = _loader()
    library = ctypes.CDLL(loader.get_library_path())
    chunks: list[Any] = []
    phones: list[tuple[int, str]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _LIST_END:
            if events[index].type == _PHONEME:
                raw = ctypes.string_at(ctypes.addressof(events[index].id), 8).split(b"\0")[0]
                phone = raw.decode("utf-8", "ignore").translate(_STRESS)
                phones.append((events[index].sample, phone or SILENCE))
            index += 1
        return 0

    callback = _Callback(receive)
    try:
        rate = library.espeak_Initialize(
            _SYNCHRONOUS, 0, loader.get_data_path().encode(), _PHONEME_EVENTS | _IPA
        )
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # the default seed is the time of day
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice.name!r}")
        library.espeak_SetParameter(_RATE, voice.words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
        encoded = text.encode()
        library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, _FROM_CHARACTER, 0, _UTF8, None, None
        )
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    samples: Any = np.concatenate(chunks).astype(np.float32) / np.float32(32768)
    phones.sort(key=lambda event: event[0])
    return Utterance(
        samples, rate, tuple(phone for _, phone in phones), tuple(begin for begin, _ in phones)
    )


@functools.cache
def speakers() -> tuple[str, ...]:
    """Names of the voice variants of the installed package."""
    return tuple(sorted(p.name for p in (_data() / "voices" / "!v").iterdir()))


@functools.cache
def accents() -> tuple[str, ...]:
    """Names of the English accents of the installed package, in lower case."""
    found = sorted(p.name.lower() for p in (_data() / "lang" / "gmw").glob("en*"))
    return tuple(name for name in found if name != "en-shaw")  # another script, not an accent


def _data() -> pathlib.Path:
    return pathlib.Path(_loader().get_data_path())


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ValueError(
            "speech_frames is synthesised with eSpeak NG: pip install 'dbjax[speech]'"
        ) from error
    return espeakng_loader
