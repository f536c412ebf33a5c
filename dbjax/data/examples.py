"""Examples held in memory and gathered into mini-batches by index."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.types import Batch


class Labelled(NamedTuple):
    """A mini-batch of inputs and their labels.

    Attributes:
      inputs: float32 [batch, ...].
      labels: class numbers, int32 [batch]; for a regression its targets, float32 [batch, outputs].
    """

    inputs: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[Any]]


class Examples(Protocol):
    """Random access to examples in memory.

    Any object with these two methods can be the data of a `Task`.
    """

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        """Returns the mini-batch of the given examples, in the given order.

        Args:
          indices: example numbers from 0 to `len(self) - 1`, int64 [batch]; may repeat.

        Returns:
          A pytree of arrays [batch, ...] whose structure, dtypes and trailing shapes are the same
          in every call.
        """


@final
@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples stored as a pytree of arrays; example i is row i of every array.

    A mini-batch has the same tree structure. Lists and tuples are part of that structure; they are
    not converted to arrays.

    Attributes:
      tree: a pytree of numeric arrays [examples, ...] with equal first dimensions.

    Raises:
      ValueError: a leaf is not a numeric array, or holds integers that do not fit into the 32 bits
        jax computes with; there are no arrays or no examples; the first dimensions differ.
    """

    tree: Any

    def __post_init__(self) -> None:
        paths = jax.tree_util.tree_leaves_with_path(self.tree, lambda x: isinstance(x, Iterator))
        leaves = {_name(path): leaf for path, leaf in paths}
        for name, leaf in leaves.items():
            _require_numbers(name, leaf)
        lengths = {name: len(leaf) for name, leaf in leaves.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                f"data needs arrays with the same number of examples, at least 1; got {lengths}"
            )

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.tree)[0])

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        return jax.tree.map(lambda values: np.asarray(values)[indices], self.tree)


def _name(path: Any) -> str:
    return "/".join(["data", *(jax.tree_util.keystr((key,), simple=True) for key in path)])


def _require_numbers(name: str, leaf: Any) -> None:
    rows = _first_row(leaf)
    if rows is None:
        raise ValueError(f"{name} is {_described(leaf)}; {_remedy(leaf)}")
    if not (jnp.issubdtype(rows.dtype, np.number) or rows.dtype == bool):
        raise ValueError(
            f"{name} holds {rows.dtype}, not numbers; encode text as numbers, and pad or cut rows "
            "of different lengths to one length"
        )
    require_known_to_jax(name, rows.dtype)
    wide = jnp.issubdtype(rows.dtype, np.integer) and rows.dtype.itemsize > 4
    kept = np.dtype(jax.dtypes.canonicalize_dtype(rows.dtype))
    if wide and kept != rows.dtype and len(leaf):
        values, most = np.asarray(leaf), np.iinfo(kept)
        low, high = values.min(), values.max()
        if low < most.min or high > most.max:
            raise ValueError(
                f"{name} holds {rows.dtype} from {low} to {high}, which jax would truncate "
                f"to {most.dtype}: set jax_enable_x64, or give smaller numbers"
            )


def require_known_to_jax(name: str, dtype: Any) -> None:
    """Raises ValueError for a NumPy dtype that jax lacks: foreign byte order, or too wide.

    Args:
      name: what the error calls the array.
      dtype: the dtype to check.
    """
    dtype = np.dtype(dtype)
    if not dtype.isnative or dtype.itemsize > {"f": 8, "c": 16}.get(dtype.kind, dtype.itemsize):
        raise ValueError(
            f"{name} holds {dtype.str!r}, which jax does not support: its byte order is not "
            "native, or it is too wide; convert it with .astype(np.float32)"
        )


def _first_row(leaf: Any) -> Any:
    """The first row of a leaf as a NumPy array [1, ...]; None if the leaf has no rows."""
    if isinstance(leaf, (str, bytes)):
        return None
    try:
        return np.asarray(leaf[:1]) if len(leaf) >= 0 else None
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def _described(leaf: Any) -> str:
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return f"of type {type(leaf).__name__}"


def _remedy(leaf: Any) -> str:
    if isinstance(leaf, type):
        return "it is a class: call it"
    if isinstance(leaf, (int, float)):
        return "lists and tuples are tree structure, not arrays: convert with np.asarray(...)"
    if not hasattr(leaf, "__len__") and not hasattr(leaf, "dtype"):
        return (
            "examples are looked up by index: collect them into arrays with np.stack(list(...)), "
            "or give an object with __len__ and gather(indices)"
        )
    return "give arrays of numbers with one row per example"


@final
@dataclasses.dataclass(frozen=True)
class Gathered:
    """Wraps a user's own `Examples` and validates every batch it returns.

    Attributes:
      examples: the user's object.
      require_labels: a check called with the labels of each batch that is an (inputs, labels)
        pair; None: labels are not checked.

    Raises:
      ValueError: there are no examples. `gather` raises it too, if a batch differs from the first
        one in structure, dtypes or shapes, or does not have as many examples as were requested.
    """

    examples: Examples
    require_labels: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        try:
            count = len(self.examples)
        except TypeError as error:
            raise ValueError(
                f"data={type(self.examples).__name__} has gather but no length: {error}"
            ) from error
        if count < 1:
            raise ValueError(
                f"data={type(self.examples).__name__} has {count} examples; give at least 1"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        batch = self.examples.gather(indices)
        found, expected = _outline(batch), self._of_size(len(indices))
        if found != expected:
            raise ValueError(
                f"data: gather of {len(indices)} examples returned {found}, but {expected} was "
                "expected from earlier calls: batches must be alike"
            )
        if self.require_labels and (labels := labels_in(batch)) is not None:
            self.require_labels(labels)
        return batch

    def _of_size(self, size: int) -> Any:
        """The expected outline of a batch of `size` examples.

        An array whose first dimension differs between batches of one and of two examples has
        `size` as first dimension; the others are the same for any size.
        """
        one, two = self._first
        structures: list[Any] = [jax.tree.structure(tree) for tree in (one, two)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"data: gather returned {one} for 1 example but {two} for 2; it must return the "
                "same tree of arrays"
            )

        def grown(a: str, b: str) -> str:
            return a if a == b else a.replace("[1", f"[{size}", 1)

        return jax.tree.map(grown, one, two)

    @functools.cached_property
    def _first(self) -> tuple[Any, Any]:
        """The outlines of a batch of one example and of a batch of two."""
        one, two = (_outline(self.examples.gather(np.zeros(n, np.int64))) for n in (1, 2))
        return one, two


def _outline(batch: Batch) -> Any:
    return jax.tree.map(_described, batch)


def examples_of(data: Any, require_labels: Callable[[Any], None] | None = None) -> Examples:
    """Converts the training data that a user gives into `Examples`.

    Args:
      data: a pytree of arrays, or an object with `__len__` and `gather(indices)`.
      require_labels: a check that raises ValueError for labels that the loss cannot take; it is
        called with the labels of data, or of batches, that are a pair (see `labels_in`).

    Raises:
      ValueError: examples cannot be gathered from `data`.
    """
    if isinstance(data, type):
        raise ValueError(f"data={data.__name__} is a class: call it")
    if not isinstance(data, (ArrayExamples, Frames)):
        if callable(getattr(data, "gather", None)):
            return Gathered(data, require_labels)
        data = ArrayExamples(data)
    examples: ArrayExamples | Frames = data
    labels = examples.labels if isinstance(examples, Frames) else labels_in(examples.tree)
    if require_labels and labels is not None:
        require_labels(labels)
    return examples


def labels_in(batch: Batch) -> Any:
    """The second element of a batch that is a pair; None for a batch of any other structure."""
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


@final
@dataclasses.dataclass(frozen=True)
class Frames:
    """Acoustic frames; a mini-batch shows each frame together with its neighbours.

    With the default context of 5 and 40 energies per frame, an input has 11 x 40 numbers. Beyond
    the ends of an utterance, its first or last frame is repeated.

    Paper: section 5, inputs of the acoustic model.

    Attributes:
      features: normalised energies, float32 [frames, energies].
      labels: class of each frame, int32 [frames].
      first: index of the first frame of each frame's utterance, int64 [frames].
      last: index of the last frame of each frame's utterance, int64 [frames].
      context: number of neighbouring frames on either side.

    Raises:
      ValueError: the four arrays differ in length or are empty, or `context` is negative.
    """

    features: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int32]]
    first: np.ndarray[Any, np.dtype[np.int64]]
    last: np.ndarray[Any, np.dtype[np.int64]]
    context: int = 5

    def __post_init__(self) -> None:
        names = ("features", "labels", "first", "last")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"Frames needs arrays of equal length, at least 1; got {lengths}")
        if self.context < 0:
            raise ValueError(f"Frames.context={self.context} must be at least 0")

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Labelled:
        offsets = np.arange(-self.context, self.context + 1)
        window = indices[:, None] + offsets
        np.maximum(window, self.first[indices, None], out=window)
        np.minimum(window, self.last[indices, None], out=window)
        inputs = self.features[window].reshape(len(indices), -1)
        return Labelled(inputs, self.labels[indices])
