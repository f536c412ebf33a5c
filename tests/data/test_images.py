"""Data sets by name: digits, a synthetic one, and those of TFDS from a local folder."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dbjax.data import load


def test_digits_are_the_real_ones():
    digits = load("digits")
    assert len(digits.train) + len(digits.test) == 1797
    assert (digits.num_classes, digits.input_shape) == (10, (64,))
    inputs = digits.train.tree.inputs
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    assert load("digits") is digits  # read once in a process


def test_synthetic_repeats_and_can_be_learnt_by_class_means():
    data = load("synthetic", num_examples=4000, seed=1)
    again = load("synthetic", num_examples=4000, seed=1, num_classes=5)
    assert np.array_equal(data.train.tree.inputs, again.train.tree.inputs)
    x, y = data.train.tree
    means = np.stack([x[y == c].mean(0) for c in range(5)])
    xt, yt = data.test.tree
    guess = ((xt[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guess == yt).mean() > 0.9


MAKE_A_SET = """
import io, sys
import numpy as np, PIL.Image, tensorflow_datasets as tfds
class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(num_classes=3)}), supervised_keys=("image", "label"))
    def _split_generators(self, dl_manager):
        return {"train": self.some(9), "test": self.some(6)}
    def some(self, n):
        for i in range(n):
            png = io.BytesIO()  # encoded by us: TFDS would need TensorFlow for that
            PIL.Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(png, "png")
            png.seek(0)
            yield i, {"image": png, "label": i % 3}
    def _generate_examples(self):
        pass
TinyImages(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
from dbjax.data import load
splits = load("tiny_images", data_dir=sys.argv[1])
x, y = splits.train.gather(np.arange(9))
assert splits.num_classes == 3 and splits.input_shape == (16,), splits
assert sorted(np.round(x[:, 0] * 255).astype(int)) == [10 * i for i in range(9)], x[:, 0]
assert (np.round(x[:, 0] * 25.5).astype(int) % 3 == y).all()
assert load("tiny_images", data_dir=sys.argv[1], flatten=False).input_shape == (4, 4, 1)
assert "tensorflow" not in sys.modules
print("ok")
"""


def test_a_set_of_tfds_is_read_without_tensorflow(tmp_path):
    script = tmp_path / "tiny_images.py"
    script.write_text(MAKE_A_SET)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})  # fmt: skip
    assert done.stdout.strip().endswith("ok"), done.stderr


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("mnits", {}, "nearest: 'mnist'"),
        ("digitz", {}, "nearest in dbjax: 'digits'"),
        ("mnist", {}, "fetch it with `python -m dbjax.data mnist --data-dir="),
        ("coco", {}, "TFDS cannot prepare 'coco': .*tensorflow"),
        ("digits", {"test_share": 2}, "test_share=2"),
        ("digits", {"shuffle": 1}, "has no 'shuffle'"),
        ("synthetic", {"num_examples": 0}, "num_examples=0"),
    ],
)
def test_mistakes_are_named(tmp_path, name, options, text):
    with pytest.raises(ValueError, match=text):
        load(name, data_dir=str(tmp_path), **options)


def test_the_command_says_what_there_is(tmp_path, capsys):
    from dbjax.data.__main__ import main

    assert main(["digits", f"--data-dir={tmp_path}"]) == 0
    assert "1438 training and 359 hold-out examples of 10 classes" in capsys.readouterr().out
    assert main(["digitz", f"--data-dir={tmp_path}"]) == 2
    assert "nearest in dbjax: 'digits'" in capsys.readouterr().err
