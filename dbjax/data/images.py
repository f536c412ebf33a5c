"""Image data sets in memory: scikit-learn's digits, any of TFDS, and a synthetic one."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from dbjax.arguments import require_at_least
from dbjax.data.examples import ArrayExamples, Labelled
from dbjax.data.splits import Splits


def digits(
    data_dir: str, *, seed: int = 0, test_share: float = 0.2, side: int | None = None
) -> Splits:
    """The 1,797 real 8x8 digits of scikit-learn, scaled to 0 .. 1; split at random.

    Args:
      side: pixels a side to scale them to; None: 8.
    """
    del data_dir  # shipped with the package
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share} must be between 0 and 1")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("digits come with scikit-learn: pip install 'dbjax[digits]'") from error
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = round(len(labels) * test_share)
    if side is not None:
        images = (inputs / 16).reshape(-1, 8, 8, 1)
        inputs = 16 * np.stack([scaled(image, side) for image in images]).reshape(len(images), -1)
    return _splits("digits", inputs / 16, labels, order[held_out:], order[:held_out])


def synthetic(
    data_dir: str,
    *,
    num_examples: int = 2_000,
    num_features: int = 20,
    num_classes: int = 5,
    seed: int = 0,
) -> Splits:
    """A mixture of Gaussians, one a class, of unit variance around centres of variance 1."""
    del data_dir
    require_at_least(
        "", 1, num_examples=num_examples, num_features=num_features, num_classes=num_classes
    )
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_classes, num_features))
    labels = random.integers(num_classes, size=num_examples)
    inputs = centres[labels] + random.normal(size=(num_examples, num_features))
    held_out = max(1, num_examples // 5)
    order = np.arange(num_examples)
    return _splits("synthetic", inputs, labels, order[held_out:], order[:held_out], num_classes)


def scaled(image: Any, side: int) -> Any:
    """An image [rows, columns, channels] scaled to [side, side, channels], float32.

    Bilinear, over all the pixels that fall into one; the aspect ratio is not kept.
    """
    from PIL import Image

    require_at_least("", 1, side=side)
    planes = [
        Image.fromarray(np.asarray(image[..., channel], np.float32))
        for channel in range(image.shape[-1])
    ]
    resized = [plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane, np.float32) for plane in resized], axis=-1)


def tfds_images(
    name: str, data_dir: str, *, flatten: bool = True, side: int | None = None
) -> Splits:
    """Any supervised image classification data set of TFDS.

    Integers are divided by the largest one of their type (uint8: 255, int16: 32,767), so that
    unsigned ones are in 0 .. 1; floats stay as they are. Inputs become float32.

    Args:
      flatten: an image is one row of numbers, which networks here take.
      side: pixels a side to scale images to, whatever their sizes; None: as they are, and all
        must have one size.

    Raises:
      ValueError: TFDS does not know it, it is not prepared, or it is no classification of numbers
        with one label each, from 0 to its number of classes - 1.
    """
    builder = _builder(name, data_dir)
    if not builder.data_path.exists():
        raise ValueError(
            f"{name!r} is not in {data_dir}: fetch it with "
            f"`python -m dbjax.data {name} --data-dir={data_dir}` where there is a network"
        )
    keys = builder.info.supervised_keys
    pair = keys is not None and len(keys) == 2 and all(isinstance(key, str) for key in keys)
    classes = getattr(builder.info.features[keys[1]], "num_classes", None) if pair else None
    if not classes:
        raise ValueError(f"{name!r} is no classification data set: it has no (input, label) pair")
    if not {"train", "test"} <= set(builder.info.splits):
        raise ValueError(f"{name!r} needs splits train and test; has {list(builder.info.splits)}")
    sets = [_read(builder, split, keys, flatten, side) for split in ("train", "test")]
    shape = sets[0].tree.inputs.shape[1:]
    return Splits(name, sets[0], sets[1], int(classes), shape)


def prepare(name: str, data_dir: str) -> None:
    """Downloads a TFDS data set, in a format that needs no TensorFlow to read.

    Raises:
      ValueError: TFDS does not know it, or cannot make it here.
    """
    builder = _builder(name, data_dir)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the end of its retries is said
    with _explained(name):
        builder.download_and_prepare()


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    absl_logging.set_verbosity(
        absl_logging.ERROR
    )  # TFDS reports what the errors below say in a line
    with _explained(name):
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of TFDS, in a line."""
    import tensorflow_datasets as tfds

    try:
        yield
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"; nearest: {close[0]!r}" if close else ""
        raise ValueError(f"TFDS has no data set {name!r}{hint}") from error
    except Exception as error:  # a download, a disk, a module such as tensorflow
        raise ValueError(
            f"TFDS cannot make {name!r}: {' '.join(str(error).split())} (some sets need "
            "TensorFlow to be made; none needs it to be read)"
        ) from error


def _read(
    builder: Any, split: str, keys: tuple[str, str], flatten: bool, side: int | None
) -> ArrayExamples:
    found = list(builder.as_data_source(split))
    where = f"data {builder.name!r}, split {split!r}"
    if not found:
        raise ValueError(f"{where} has no examples: prepare it again")
    images, labels = ([_feature(example, key, where) for example in found] for key in keys)
    inputs = _inputs(images, side, f"{where}, feature {keys[0]!r}")
    if flatten:
        inputs = inputs.reshape(len(inputs), -1)
    return ArrayExamples(Labelled(inputs, _labels(labels, f"{where}, feature {keys[1]!r}")))


def _feature(example: Any, key: str, where: str) -> Any:
    if key not in example:
        raise ValueError(f"{where}: an example has no {key!r}, only {', '.join(example)}")
    return example[key]


def _inputs(images: list[Any], side: int | None, where: str) -> Any:
    """[images, ...], float32; see `tfds_images`."""
    images = [_array(image) for image in images]
    dtypes, shapes = ({getattr(image, name) for image in images} for name in ("dtype", "shape"))
    (dtype, *others), shown = dtypes, " and ".join(map(str, sorted(shapes)[:3]))
    if others or dtype.kind not in "biuf":
        raise ValueError(
            f"{where} holds {' and '.join(map(str, dtypes))}: only sets whose inputs are numbers, "
            "of one type, can be loaded; encode others by hand, and give dbjax.Task arrays"
        )
    if side is None and len(shapes) > 1:
        raise ValueError(
            f"{where} has {len(shapes)} shapes, such as {shown}: give side, the pixels a side to "
            "scale images to"
        )
    if side is not None:
        if {len(shape) for shape in shapes} != {3} or len({shape[2] for shape in shapes}) > 1:
            raise ValueError(
                f"{where} has shapes such as {shown}: side={side} needs images [rows, columns, "
                "channels] with the same channels; leave it out"
            )
        images = [scaled(image, side) for image in images]
    inputs = np.stack(images)
    if dtype.kind in "iu":
        inputs = inputs / np.float32(np.iinfo(dtype).max)
    return inputs.astype(np.float32)


def _labels(labels: list[Any], where: str) -> Any:
    """[labels], int32."""
    labels = [_array(label) for label in labels]
    shapes = {label.shape for label in labels}
    if shapes != {()}:
        raise ValueError(
            f"{where} has labels of shape {' and '.join(map(str, sorted(shapes)[:3]))}: only sets "
            "with one label for each example can be loaded"
        )
    found = np.array(labels)
    if found.dtype.kind not in "iu":
        raise ValueError(f"{where} has labels of type {found.dtype}: they must be integers")
    limits = np.iinfo(np.int32)
    if found.size and (found.min() < limits.min or found.max() > limits.max):
        raise ValueError(
            f"{where} has labels from {found.min()} to {found.max()}: each must be a class number"
        )
    return found.astype(np.int32)


def _array(value: Any) -> Any:
    """As NumPy has it; of type object where it has rows of different lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(value, object)


def _splits(
    name: str, inputs: Any, labels: Any, train: Any, test: Any, num_classes: int | None = None
) -> Splits:
    inputs, labels = inputs.astype(np.float32), labels.astype(np.int32)
    return Splits(
        name,
        ArrayExamples(Labelled(inputs[train], labels[train])),
        ArrayExamples(Labelled(inputs[test], labels[test])),
        num_classes if num_classes is not None else int(labels.max()) + 1,
        inputs.shape[1:],
    )
