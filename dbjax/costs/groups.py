"""Which devices take part together in a collective: the forms in which HLO writes it."""

from __future__ import annotations

import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[(.*?)\](.*)")
_AXIS = re.compile(r"'?([^',:=]+)'?=(\d+)")
_PART = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?")  # an axis, or 'axis':(before)size of it
_ORDER = re.compile(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")


def groups(text: str, device_ids: str, devices: int) -> Groups:
    """Reads `replica_groups`.

    Args:
      text: `{{0,1},{2,3}}`; `{}`, which is all devices together; `[2,4]<=[4,2]T(1,0)`; or
        `mesh['a'=2,'b'=4] {'a'}`, since XLA of 2026.
      device_ids: the attribute that a mesh in an order of its own has behind it:
        `([4,2]T(1,0)) {'a'}`; else "".
      devices: how many there are.

    Raises:
      ValueError: the text has none of these forms.
    """
    if found := _IOTA.fullmatch(text):
        return _rows(_reordered(found[2], found[3]).reshape(_ints(found[1])))
    if found := _MESH.fullmatch(text):
        return _of_mesh(found[1], device_ids or found[2])
    if re.fullmatch(r"\{\s*\}", text):
        return (tuple(range(devices)),)
    if not re.fullmatch(r"\{(\s*\{[\d,\s]*\}\s*,?)+\}", text):
        raise ValueError(f"not a form of replica_groups: {text}")
    return tuple(_ints(group) for group in re.findall(r"\{([\d,\s]*)\}", text))


def _of_mesh(axes_text: str, rest: str) -> Groups:
    """The devices that differ only by where they are along the axes that are named last."""
    order, brace, named = rest.strip().partition("{")
    if not brace or not named.endswith("}"):
        raise ValueError(f"replica_groups name no axes of the mesh: {rest}")
    parts = _PART.findall(named[:-1])
    sizes: list[int] = []
    places: dict[tuple[str, str], int] = {}  # of an axis, or a part of one, among the sizes
    for name, size in _AXIS.findall(axes_text):
        _cut(name, int(size), parts, sizes, places)
    if unknown := {(name, before) for name, before, _ in parts} - set(places):
        raise ValueError(f"replica_groups name axes the mesh does not have: {sorted(unknown)}")
    last = [places[name, before] for name, before, _ in parts]
    first = [axis for axis in range(len(sizes)) if axis not in last]
    together = math.prod(sizes[axis] for axis in last)
    ids = _ids(order.strip(), math.prod(sizes)).reshape(sizes)
    return _rows(ids.transpose(first + last).reshape(-1, together))


def _cut(
    name: str,
    size: int,
    parts: list[tuple[str, str, str]],
    sizes: list[int],
    places: dict[tuple[str, str], int],
) -> None:
    """Adds an axis of the mesh: whole; or what is before each named part of it, and the part."""
    cuts = sorted((int(before), int(n)) for part, before, n in parts if part == name and before)
    done = 1
    for before, length in cuts:
        places[name, str(before)] = len(sizes) + 1
        sizes += [before // done, length]
        done = before * length
    if not cuts:
        places[name, ""] = len(sizes)
    sizes.append(size // done)


def _ids(order: str, devices: int) -> np.ndarray:
    """The devices of a mesh, in its order: "", `([4,2]T(1,0))` or `(3,1,2,0)`."""
    if found := _ORDER.fullmatch(order):
        return _reordered(found[1], found[2])
    return np.array(_ints(order.strip("()"))) if order else np.arange(devices)


def _reordered(dims: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... as an array of dims, its axes put in another order, and flat again."""
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return ids.transpose(_ints(order) if order else None).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids)
