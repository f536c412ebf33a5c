"""Loads `speech_frames` into memory and generates it first if it is missing."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dbjax.data.examples import Frames
from dbjax.data.speech.states import align, tie
from dbjax.data.splits import Splits
from dbjax.files import lock_directory
from dbjax.signals import on_interrupt


def load(
    data_dir: str,
    *,
    num_states: int = 128,
    num_frames: int = 300_000,
    seed: int = 0,
    context: int = 5,
) -> Splits:
    """Loads synthesised speech frames, labelled with tied context-dependent states.

    Energies are normalised to zero mean and unit variance over the training frames.

    Args:
      data_dir: the folder of prepared data; missing data is generated and stored in it.
      num_states: the number of tied states, which are the classes.
      num_frames: the number of frames of both sets together; a tenth of the utterances are held
        out.
      seed: the seed of words, speakers and noise.
      context: the number of neighbouring frames on either side of the frame to classify.

    Returns:
      Splits of `Frames`, with inputs float32 [frames, 40 * (2 * context + 1)].

    Raises:
      ValueError: an argument is out of range, or a package is missing that generates the data.

    Paper: section 5, the acoustic modelling task, which used recorded speech.
    """
    if context < 0:
        raise ValueError(f"context={context} must be at least 0")
    prepared = _prepared(data_dir, num_frames, seed)
    aligned: dict[str, list[Any]] = {}
    for split in ("train", "test"):
        utterances = list(prepared.as_data_source(split))
        aligned[split] = [
            (u["frames"], align(len(u["frames"]), _text(u["phones"]), np.array(u["begins_s"])))
            for u in utterances
        ]
    tying = tie([alignment for _, alignment in aligned["train"]], num_states)
    train = np.concatenate([frames for frames, _ in aligned["train"]])
    mean, deviation = train.mean(0, np.float64), train.std(0, np.float64)

    def frames_of(split: str) -> Frames:
        lengths = np.array([len(frames) for frames, _ in aligned[split]])
        ends = np.cumsum(lengths)
        features = np.concatenate([frames for frames, _ in aligned[split]])
        labels = np.concatenate([tying.label(alignment) for _, alignment in aligned[split]])
        normalised = ((features - mean) / deviation).astype(np.float32)
        first, last = np.repeat(ends - lengths, lengths), np.repeat(ends - 1, lengths)
        return Frames(normalised, labels, first, last, context)

    width = train.shape[1] * (2 * context + 1)
    return Splits("speech_frames", frames_of("train"), frames_of("test"), num_states, (width,))


def _prepared(data_dir: str, num_frames: int, seed: int) -> Any:
    builder = _builder(data_dir, num_frames, seed)
    if not builder.data_path.exists():
        with lock_directory(builder.data_path.parent, what="the data folder", wait=True):
            builder = _builder(data_dir, num_frames, seed)
            if not builder.data_path.exists():  # no other process made it meanwhile
                _make(builder)
    return builder


def _builder(data_dir: str, num_frames: int, seed: int) -> Any:
    from absl import logging

    from dbjax.data.speech.builder import SpeechFrames, config

    logging.set_verbosity(logging.ERROR)
    return SpeechFrames(
        config=config(num_frames, seed), data_dir=data_dir, file_format="array_record"
    )


def _make(builder: Any) -> None:
    import tensorflow_datasets as tfds

    for left_over in Path(builder.data_path.parent).glob("incomplete.*"):
        shutil.rmtree(left_over, ignore_errors=True)  # by an interrupted process
    tfds.disable_progress_bar()
    # What TFDS prints is of downloads, and nothing is downloaded.
    with on_interrupt() as builder.interrupted, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    if builder.interrupted.by:
        raise KeyboardInterrupt(builder.interrupted.by)


def _text(phones: list[bytes]) -> list[str]:
    return [phone.decode() for phone in phones]
