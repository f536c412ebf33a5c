"""speech_frames: made the same by any number of processes, held out by voice, tied."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dbjax.data import load
from dbjax.data.speech import corpus, espeak, mel, states, workers
from tests.processes import LIMIT_S

SMALL = {"num_frames": 6_000, "num_states": 40}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def speech(data_dir):
    return load("speech_frames", data_dir=data_dir, **SMALL)


def test_sizes_types_and_normalisation(speech):
    assert SMALL["num_frames"] <= len(speech.train) + len(speech.test) < 1.2 * SMALL["num_frames"]
    batch = speech.train.gather(np.arange(50))
    assert batch.inputs.shape == (50, 440) == (50, *speech.input_shape)
    assert (batch.inputs.dtype, batch.labels.dtype) == (np.float32, np.int32)
    features = speech.train.features
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-3)


def test_every_state_is_seen_and_none_is_most_of_the_data(speech):
    shares = np.bincount(speech.train.labels, minlength=40) / len(speech.train)
    assert len(shares) == 40
    assert np.count_nonzero(shares) == 40
    assert shares.max() < 0.2
    assert speech.test.labels.max() < 40


def test_states_are_tied_when_read_not_when_made(data_dir, speech):
    more = load("speech_frames", data_dir=data_dir, **SMALL | {"num_states": 400})
    assert more.num_classes == 400
    assert np.array_equal(more.train.features, speech.train.features)
    with pytest.raises(ValueError, match=r"num_states=100000 is more than .* raise num_frames"):
        load("speech_frames", data_dir=data_dir, **SMALL | {"num_states": 100_000})


def test_any_number_of_workers_makes_the_same():
    def some(count):
        with_workers = workers.recordings(3, workers=count)
        found = list(itertools.islice(with_workers, 5))
        with_workers.close()
        return found

    for a, b in zip(some(1), some(2), strict=True):
        assert (a.test, a.voice, a.phones) == (b.test, b.voice, b.phones)
        assert np.array_equal(a.frames, b.frames)
        assert np.array_equal(a.begins_s, b.begins_s)
    assert corpus.record(4, 0).phones != corpus.record(3, 0).phones


def test_no_speaker_is_in_both_sets():
    train, test = (set(corpus.speakers(test=held_out)) for held_out in (False, True))
    assert not train & test
    assert len(test) >= 5
    said = list(itertools.islice(workers.recordings(0), 60))
    assert {r.voice.split("+")[1] for r in said if r.test} <= test
    assert {r.voice.split("+")[1] for r in said if not r.test} <= train


def test_phones_lie_where_they_are_spoken():
    """Vowels are louder than the silence that the synthesiser reports."""
    said = espeak.synthesise("a long and windy road", espeak.Voice("en-us", "m1"))
    energies = mel.log_mel(said.samples, said.sample_rate)
    begins = np.array(said.begins, np.float32) / said.sample_rate
    aligned = states.align(len(energies), list(said.phones), begins)
    loudness = energies.max(1)
    names = np.array(aligned.phones)[aligned.phone_of_frame]
    silent = loudness[names == espeak.SILENCE].mean()
    spoken = loudness[names != espeak.SILENCE].mean()
    assert spoken > silent + 3  # natural logarithms of energies


def test_mel_puts_a_tone_into_the_filter_around_it():
    rate = 22_050
    t = np.arange(rate) / rate
    peaks = [
        mel.log_mel(np.sin(2 * np.pi * hz * t).astype(np.float32), rate).mean(0).argmax()
        for hz in (300, 1000, 3000)
    ]
    assert peaks == sorted(peaks)
    expected = [2595 * np.log10(1 + hz / 700) for hz in (64, 300, 1000, 3000, 8000)]
    for peak, place in zip(peaks, expected[1:4], strict=True):
        share = (place - expected[0]) / (expected[-1] - expected[0])
        assert abs(peak - (share * (mel.ENERGIES + 1) - 1)) <= 1


def test_alignment_by_hand():
    aligned = states.align(6, ["a", "b"], np.array([0.0, 0.03], np.float32))
    names = [aligned.phones[i] for i in aligned.phone_of_frame]  # middles: 12.5, 22.5, ... ms
    assert names == ["a", "a", "b", "b", "b", "b"]
    assert aligned.third_of_frame.tolist() == [1, 2, 0, 1, 2, 2]


def test_the_most_frequent_contexts_own_a_state_and_the_rest_back_off():
    aligned = [
        states.Alignment(("_", "a", "b"), np.repeat([0, 1, 2], [6, 9, 3]),
                         np.concatenate([np.repeat([0, 1, 2], n) for n in (2, 3, 1)]))
    ]  # fmt: skip
    tying = states.tie(aligned, 12)  # 3 phones x 3 thirds back off; 3 contexts own a state
    labels = tying.label(aligned[0])
    assert set(labels[6:15]) == {9, 10, 11}  # the thirds of "a", the most frequent
    assert set(labels[:6]) | set(labels[15:]) <= set(range(9))
    unknown = states.Alignment(("_", "z"), np.array([0, 1]), np.array([0, 0]))
    assert tying.label(unknown)[1] in range(9)  # a phone never heard before
    tiny = states.tie(aligned, 4)
    assert set(tiny.label(aligned[0])) <= set(range(4))


def test_interrupted_generation_leaves_nothing_half_made(tmp_path):
    command = [sys.executable, "-m", "dbjax.data", "speech_frames", f"--data-dir={tmp_path}",
               "--num-frames=200000"]  # fmt: skip
    making = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT_S
    while not list(tmp_path.rglob("incomplete.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    making.send_signal(signal.SIGINT)
    _, said = making.communicate(timeout=LIMIT_S)
    assert making.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("200000_frames*/*/dataset_info.json"))
    fine = load("speech_frames", data_dir=str(tmp_path), num_frames=3_000, num_states=20)
    assert len(fine.train) + len(fine.test) >= 3_000


def test_an_interrupt_inside_a_callback_is_not_forgotten(tmp_path, monkeypatch):
    """Python prints an exception raised in a callback of ctypes, and goes on."""
    interrupt = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))

    def some(seed):
        for made in workers.recordings(seed):
            interrupt()
            yield made

    monkeypatch.setattr("dbjax.data.speech.builder.recordings", some)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load("speech_frames", data_dir=str(tmp_path), num_frames=3_000, num_states=20)
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.rglob("dataset_info.json"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_states": 1}, "num_states=1 must be at least 2"),
        ({"num_frames": 100}, "num_frames=100 is too few"),
        ({"context": -1}, "context=-1"),
        ({"num_stats": 4}, "nearest: 'num_states'"),
    ],
)
def test_mistakes_are_named(data_dir, options, text):
    with pytest.raises(ValueError, match=text):
        load("speech_frames", data_dir=data_dir, **SMALL | options)


def test_a_missing_package_is_named(tmp_path):
    script = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from dbjax.data.__main__ import main\n"
        f"sys.exit(main(['speech_frames', '--data-dir={tmp_path}', '--num-frames=3000']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ)  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'dbjax[speech]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
