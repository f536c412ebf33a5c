"""The TFDS builder of `speech_frames`: each example is an utterance with its phone alignment.

The data set stores energies and phone boundaries rather than states, so that it can be read with
any number of tied states (`states`) without being generated again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from dbjax.data.speech.corpus import Recording
from dbjax.data.speech.mel import ENERGIES
from dbjax.data.speech.workers import recordings
from dbjax.signals import Interrupted

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class SpeechFramesConfig(tfds.core.BuilderConfig):
    """The amount of speech to synthesise, and its seed.

    Attributes:
      num_frames: the number of frames of both sets together.
      seed: the seed of the utterances.
    """

    num_frames: int
    seed: int


def config(num_frames: int, seed: int) -> SpeechFramesConfig:
    """Returns the builder configuration for the given size and seed.

    Raises:
      ValueError: `num_frames` is below 2,000.
    """
    if num_frames < 2_000:
        raise ValueError(
            f"num_frames={num_frames} is too few for both sets (training and hold-out): "
            "give at least 2000"
        )
    return SpeechFramesConfig(
        name=f"{num_frames}_frames_seed_{seed}",
        num_frames=num_frames,
        seed=seed,
        description=f"{num_frames} frames of speech, of which a tenth are held out.",
    )


class SpeechFrames(tfds.core.GeneratorBasedBuilder):
    """Synthesised English speech with the phone boundaries reported by the synthesiser."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: SpeechFramesConfig
    interrupted = Interrupted()  # replaced by whoever prepares the data

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(
            {
                "frames": tfds.features.Tensor(shape=(None, ENERGIES), dtype=np.float32),
                "phones": tfds.features.Sequence(tfds.features.Text()),
                "begins_s": tfds.features.Sequence(np.float32),
                "voice": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            description=self.__doc__,
            citation="eSpeak NG (GPL-3.0); word frequencies: wordfreq (Speer 2022)",
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        del dl_manager
        made = list(self._unless_interrupted(_enough(self.builder_config)))
        return {
            "train": self._unless_interrupted(_examples([m for m in made if not m.test])),
            "test": self._unless_interrupted(_examples([m for m in made if m.test])),
        }

    def _unless_interrupted(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self.interrupted.by:
                raise KeyboardInterrupt(self.interrupted.by)
            yield item

    def _generate_examples(self) -> Any:
        raise NotImplementedError("_split_generators gives both sets at once")


def _examples(found: list[Recording]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, recording in enumerate(found):
        yield (
            number,
            {
                "frames": recording.frames,
                "phones": list(recording.phones),
                "begins_s": recording.begins_s,
                "voice": recording.voice,
            },
        )


def _enough(size: SpeechFramesConfig) -> Iterator[Recording]:
    """Yields utterances until they have at least `size.num_frames` frames together."""
    made = 0
    with contextlib.closing(recordings(size.seed)) as found, _progress(size.num_frames) as advance:
        logging.getLogger(__name__).info("making %d frames of speech", size.num_frames)
        for recording in found:
            yield recording
            made += len(recording.frames)
            advance(len(recording.frames))
            if made >= size.num_frames:
                return


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Shows a progress bar if standard error is a terminal; yields a function to advance it."""
    if not sys.stderr.isatty():
        yield lambda frames: None
        return
    import rich.console
    import rich.progress

    with rich.progress.Progress(console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("making speech frames", total=total)
        yield lambda frames: bar.advance(task, frames)
