"""Examples held in memory, gathered by number."""

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
    """A mini-batch: inputs float32 [batch, ...], labels int32 [batch].

    Those of a regression are float32 [batch, outputs].
    """

    inputs: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[Any]]


class Examples(Protocol):
    """Random access to examples in memory."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        """The mini-batch of these examples, in this order: one vectorised gather."""


@final
@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """A pytree of arrays with equal first dimension; a batch has the same structure.

    Lists and tuples are structure, not arrays: examples are rows of arrays of numbers.

    Raises:
      ValueError: a leaf is no array of numbers, or holds integers that do not fit the 32 bits that
        jax computes with; there are no arrays, no examples, or their numbers differ.
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
            f"{name} holds {rows.dtype}, no numbers; encode text as numbers, and give rows of "
            "different lengths one length"
        )
    require_known_to_jax(name, rows.dtype)
    wide = jnp.issubdtype(rows.dtype, np.integer) and rows.dtype.itemsize > 4
    kept = np.dtype(jax.dtypes.canonicalize_dtype(rows.dtype))
    if wide and kept != rows.dtype and len(leaf):
        values, most = np.asarray(leaf), np.iinfo(kept)
        low, high = values.min(), values.max()
        if low < most.min or high > most.max:
            raise ValueError(
                f"{name} holds {rows.dtype} from {low} to {high}, which jax would cut to "
                f"{most.dtype}: set jax_enable_x64, or give smaller numbers"
            )


def require_known_to_jax(name: str, dtype: Any) -> None:
    """Raises ValueError for a type of NumPy that jax lacks: of another byte order, or too wide."""
    dtype = np.dtype(dtype)
    if not dtype.isnative or dtype.itemsize > {"f": 8, "c": 16}.get(dtype.kind, dtype.itemsize):
        raise ValueError(
            f"{name} holds {dtype.str!r}, which jax does not know: it is of another byte order, or "
            "too wide; convert it with .astype(np.float32)"
        )


def _first_row(leaf: Any) -> Any:
    """As NumPy has it, [1, ...]; None where a leaf has no rows."""
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
        return "lists and tuples are structure, and hold arrays: convert with np.asarray(...)"
    if not hasattr(leaf, "__len__") and not hasattr(leaf, "dtype"):
        return (
            "examples are looked up by number: collect them into arrays with np.stack(list(...)), "
            "or give an object with __len__ and gather(indices)"
        )
    return "give arrays of numbers, whose rows are the examples"


@final
@dataclasses.dataclass(frozen=True)
class Gathered:
    """Examples of a user's own class, whose batches are looked at.

    Attributes:
      require_labels: is given the labels of each batch that is a pair.

    Raises:
      ValueError: there are none; or a batch has another structure than the first, other types or
        shapes, or another number of examples than were asked for.
    """

    examples: Examples
    require_labels: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        try:
            count = len(self.examples)
        except TypeError as error:
            raise ValueError(
                f"data={type(self.examples).__name__} gathers, but has no length: {error}"
            ) from error
        if count < 1:
            raise ValueError(
                f"data={type(self.examples).__name__} has {count} examples; at least 1"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        batch = self.examples.gather(indices)
        found, expected = _outline(batch), self._of_size(len(indices))
        if found != expected:
            raise ValueError(
                f"data: gather of {len(indices)} examples returned {found}, and {expected} was "
                "expected after those before: batches must be alike"
            )
        if self.require_labels and (labels := labels_in(batch)) is not None:
            self.require_labels(labels)
        return batch

    def _of_size(self, size: int) -> Any:
        """The outline of a batch: the first dimension of what grew with it is its size."""
        one, two = self._first
        structures: list[Any] = [jax.tree.structure(tree) for tree in (one, two)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"data: gather returned {one} for 1 example, {two} for 2; it must return arrays"
            )

        def grown(a: str, b: str) -> str:
            return a if a == b else a.replace("[1", f"[{size}", 1)

        return jax.tree.map(grown, one, two)

    @functools.cached_property
    def _first(self) -> tuple[Any, Any]:
        """Outlines of a batch of one example, and of one of two."""
        one, two = (_outline(self.examples.gather(np.zeros(n, np.int64))) for n in (1, 2))
        return one, two


def _outline(batch: Batch) -> Any:
    return jax.tree.map(_described, batch)


def examples_of(data: Any, require_labels: Callable[[Any], None] | None = None) -> Examples:
    """Training data as a user gives it, to be gathered by number.

    Args:
      require_labels: raises ValueError for labels that the loss cannot take; see `labels_in`.

    Raises:
      ValueError: it is nothing that examples can be taken from.
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
    """The labels of a batch that is a pair of inputs and labels; None if it is something else."""
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


@final
@dataclasses.dataclass(frozen=True)
class Frames:
    """Acoustic frames with their context: the 11 x 40 inputs of section 5.

    Attributes:
      features: normalised, float32 [frames, energies].
      labels: int32 [frames].
      first: int64 [frames], number of the first frame of each frame's utterance.
      last: int64 [frames], number of the last one.
      context: frames on either side; beyond an utterance its edge frame is repeated.
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
            raise ValueError(f"Frames needs as many of each, at least 1; got {lengths}")
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
