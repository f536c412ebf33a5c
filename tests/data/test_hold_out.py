"""What is held out is not trained on, and nothing of it is known when training data is made."""

import pathlib
import types

import numpy as np
import pytest

from dbjax.data import images, load
from dbjax.data.speech import builder
from dbjax.data.speech import load as speech_frames


def row_bytes(inputs):
    return {row.tobytes() for row in np.asarray(inputs)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {}),
        ("digits", {"test_share": 0.5, "seed": 3}),
        ("synthetic", {"num_examples": 60}),
        ("quadratic", {"num_examples": 60}),
    ],
)
def test_no_example_is_in_both_sets(name, options):
    """Nor twice in one of them: of the digits all 1,797 differ."""
    splits = load(name, **options)
    train, test = (splits.train.tree.inputs, splits.test.tree.inputs)
    assert len(row_bytes(train)) + len(row_bytes(test)) == len(train) + len(test)
    assert not row_bytes(train) & row_bytes(test)
    share = options.get("test_share", 0.2)
    assert len(test) == round(share * (len(train) + len(test)))


class Stored:
    """A data set of TFDS, prepared: its splits, by hand."""

    data_path, name = pathlib.Path(__file__), "pictures"

    def __init__(self, splits, **info):
        self.splits = splits
        self.info = types.SimpleNamespace(splits=splits, **info)

    def as_data_source(self, split):
        return self.splits[split]


def test_image_sets_are_read_split_by_split(monkeypatch):
    pictures = {
        "train": [{"image": np.full((2, 2, 1), k, np.uint8), "label": k % 3} for k in range(5)],
        "test": [{"image": np.full((2, 2, 1), k, np.uint8), "label": k % 3} for k in (7, 8)],
    }
    labels = {"label": types.SimpleNamespace(num_classes=3)}
    stored = Stored(pictures, supervised_keys=("image", "label"), features=labels)
    monkeypatch.setattr(images, "_builder", lambda name, data_dir: stored)
    splits = images.tfds_images("pictures", "nowhere")
    train, test = splits.train.tree, splits.test.tree
    np.testing.assert_array_equal(train.inputs[:, 0], np.arange(5, dtype=np.float32) / 255)
    np.testing.assert_array_equal(test.inputs[:, 0], np.array([7, 8], np.float32) / 255)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0, 1], [1, 2])


def utterance(phones, values, seconds_each=0.03):
    """So many frames of a phone (10 ms each), each phone with one value in both energies."""
    frames = np.repeat(np.array(values, np.float32), 3)[:, None] * np.ones((1, 2), np.float32)
    begins_s = seconds_each * np.arange(len(phones))
    return {
        "frames": frames,
        "phones": [phone.encode() for phone in phones],
        "begins_s": begins_s.astype(np.float32),
    }


@pytest.fixture
def speech(monkeypatch):
    """Training: "a" and "b" around 0; hold-out: much "c", which is unknown there, around 9."""
    utterances = {
        "train": [utterance("aabb", [-1, 1, -1, 1]), utterance("ab", [-1, 1])],
        "test": [utterance("ccccb", [8, 10, 8, 10, 1])],
    }
    monkeypatch.setattr(speech_frames, "_prepared", lambda *_: Stored(utterances))

    def loaded(num_states):
        return speech_frames.load("nowhere", num_states=num_states, num_frames=2_000, context=0)

    return loaded


def test_hold_out_frames_are_normalised_as_the_training_frames_are(speech):
    """Those have mean 0 and deviation 1 as they are, so that nothing changes."""
    splits = speech(4)
    assert sorted(set(splits.train.features.ravel())) == [-1.0, 1.0]
    assert splits.test.features[:, 0].tolist() == np.repeat([8.0, 10, 8, 10, 1], 3).tolist()
    assert not row_bytes(splits.train.features) & row_bytes(splits.test.features[:12])


def test_states_are_tied_with_training_data_alone(speech):
    """Of the hold-out set most is "c", whose contexts would own states if they were counted.

    Of 4 states 3 may back off, by how often a phone is heard in training: b (11 frames, the
    middle of the first of which is 32.5 ms) has 0, a (7) has 1, silence (none) has 2. The most
    frequent context, an end of b, owns 3. "c" is unknown: it has the state of the rarest phone.
    """
    splits = speech(4)
    train, test = splits.train.labels, splits.test.labels
    assert set(train) == {0, 1, 3}
    assert test[:11].tolist() == [2] * 11
    assert set(test[11:]) <= {0, 3}
    assert (splits.num_classes, len(train), len(test)) == (4, 18, 15)


def test_utterances_are_stored_in_the_set_of_their_speaker(monkeypatch):
    made = [
        types.SimpleNamespace(test=number % 4 == 0, frames=np.full((2, 40), number), phones=(),
                              begins_s=np.zeros(0), voice=f"v{number}")
        for number in range(9)
    ]  # fmt: skip
    monkeypatch.setattr(builder, "_enough", lambda size: iter(made))
    config = types.SimpleNamespace(builder_config=None, _unless_interrupted=iter)
    found = builder.SpeechFrames._split_generators(config, None)
    voices = {split: [u["voice"] for _, u in examples] for split, examples in found.items()}
    assert voices["test"] == ["v0", "v4", "v8"]
    assert voices["train"] == ["v1", "v2", "v3", "v5", "v6", "v7"]
