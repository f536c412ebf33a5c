"""In-memory image data sets: scikit-learn's digits and any TFDS set; also Gaussian clusters."""

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
    """Loads scikit-learn's 1,797 handwritten 8x8 digits, with pixels in 0 .. 1, split at random.

    Args:
      data_dir: unused: the images ship with scikit-learn.
      seed: the seed of the random split.
      test_share: the fraction of the images to hold out, above 0 and below 1.
      side: rescales the images to this many pixels per side; None: they stay 8x8.

    Returns:
      Splits with inputs float32 [examples, side * side] and 10 classes.

    Raises:
      ValueError: scikit-learn is not installed, or an argument is out of range.
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
    """Draws a classification set from a mixture of Gaussians with one component per class.

    The components have unit variance; their centres are drawn from a standard normal.

    Args:
      data_dir: unused: the data is generated in memory.
      num_examples: the number of examples, of which a fifth (at least one) are held out.
      num_features: the length of an input.
      num_classes: the number of components.
      seed: the seed of the centres and examples.

    Returns:
      Splits with inputs float32 [examples, num_features].

    Raises:
      ValueError: a number is below 1.
    """
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
    """Resizes an image [rows, columns, channels] to [side, side, channels], float32.

    Interpolation is bilinear and antialiased: where the image shrinks, all pixels that fall into
    a new one are averaged. The aspect ratio is not kept.
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
    """Loads any supervised image classification data set of TFDS that has been prepared.

    Integer inputs are divided by the largest value of their dtype (uint8: 255, int16: 32,767), so
    that unsigned ones lie in 0 .. 1; floats are unchanged. All inputs become float32.

    Args:
      name: the name of the data set in TFDS.
      data_dir: the folder in which `prepare` put it.
      flatten: whether to flatten each image to a vector, as the networks of `dbjax.models` expect.
      side: resizes every image to this many pixels per side; None: images keep their size, which
        must then be the same for all.

    Returns:
      Splits with inputs float32 [examples, pixels], or [examples, rows, columns, channels] unless
      flattened.

    Raises:
      ValueError: TFDS has no such data set, it is not prepared, or it is not a classification of
        numeric inputs with one label each, from 0 to its number of classes - 1.
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
        raise ValueError(
            f"{name!r} is not a classification data set: it has no (input, label) pair"
        )
    if not {"train", "test"} <= set(builder.info.splits):
        raise ValueError(
            f"{name!r} needs splits train and test; it has {list(builder.info.splits)}"
        )
    sets = [_read(builder, split, keys, flatten, side) for split in ("train", "test")]
    shape = sets[0].tree.inputs.shape[1:]
    return Splits(name, sets[0], sets[1], int(classes), shape)


def prepare(name: str, data_dir: str) -> None:
    """Downloads a TFDS data set and stores it in a format that can be read without TensorFlow.

    Args:
      name: the name of the data set in TFDS.
      data_dir: the folder to store it in.

    Raises:
      ValueError: TFDS has no such data set, or cannot prepare it on this machine.
    """
    builder = _builder(name, data_dir)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # only the final error matters
    with _explained(name):
        builder.download_and_prepare()


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    # TFDS logs at length what the errors below say in one line.
    absl_logging.set_verbosity(absl_logging.ERROR)
    with _explained(name):
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns any TFDS error into a one-line ValueError."""
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
            f"TFDS cannot prepare {name!r}: {' '.join(str(error).split())} (preparing some sets "
            "needs TensorFlow; reading them never does)"
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
    """Stacks images to float32 [images, ...], resized and scaled as `tfds_images` says."""
    images = [_array(image) for image in images]
    dtypes, shapes = ({getattr(image, name) for image in images} for name in ("dtype", "shape"))
    (dtype, *others), shown = dtypes, " and ".join(map(str, sorted(shapes)[:3]))
    if others or dtype.kind not in "biuf":
        raise ValueError(
            f"{where} holds {' and '.join(map(str, dtypes))}: only sets whose inputs are numbers "
            "of one type can be loaded; encode others yourself and pass the arrays to dbjax.Task"
        )
    if side is None and len(shapes) > 1:
        raise ValueError(
            f"{where} has {len(shapes)} shapes, such as {shown}: give side, the number of "
            "pixels per side to resize images to"
        )
    if side is not None:
        if {len(shape) for shape in shapes} != {3} or len({shape[2] for shape in shapes}) > 1:
            raise ValueError(
                f"{where} has shapes such as {shown}: side={side} needs images [rows, columns, "
                "channels] with the same number of channels; leave it out"
            )
        images = [scaled(image, side) for image in images]
    inputs = np.stack(images)
    if dtype.kind in "iu":
        inputs = inputs / np.float32(np.iinfo(dtype).max)
    return inputs.astype(np.float32)


def _labels(labels: list[Any], where: str) -> Any:
    """Converts scalar integer labels to int32 [labels]."""
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
    """Converts to a NumPy array, of dtype object if rows differ in length."""
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
