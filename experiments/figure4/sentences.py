"""What section 5 says of Figure 4, beside what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.accuracy import guessing
from experiments.claims import Claim, supported, verdict
from experiments.figure4.results import Runs, by_time, label, seconds, times


class Sooner(NamedTuple):
    """That one method is sooner than another, and what we take the words to mean.

    Attributes:
      quick, slow: keys of methods.
      least, most: how many times sooner.
    """

    words: str
    quick: str
    slow: str
    least: float = 1.0
    most: float = math.inf

    @property
    def sentence(self) -> str:
        bound = f"at least {self.least:g}" if math.isinf(self.most) else f"1 to {self.most:g}"
        return f"{self.words} (taken as: {bound} times)"

    def agrees(self, ratio: float, *, more: bool) -> float:
        """1 where it is that many times sooner, 1/2 where it is sooner at all.

        Args:
          more: it is sooner by more than `ratio`, nobody knows by how much.
        """
        if ratio <= 1:
            return 0.0
        most = math.inf if more else ratio
        return 1.0 if self.least <= ratio and most <= self.most else 0.5


_FASTEST, _AIM = "downpour_adagrad_200", "our aim, not the paper's"
SOONER = (
    Sooner("Downpour [20] is clearly faster than SGD [1]", "downpour", "sgd", 1.5),
    Sooner("with Adagrad [20], modestly faster again", "downpour_adagrad", "downpour", most=2.0),
    Sooner("Sandblaster [2000] is considerably faster", "sandblaster", "downpour_adagrad", 2.0),
    Sooner("with enough CPUs Sandblaster beats the GPU", "sandblaster", "gpu"),
    Sooner("with enough CPUs Downpour + Adagrad [200] does so", _FASTEST, "gpu"),
    Sooner(f"({_AIM}) Downpour + Adagrad [20] before SGD [1]", "downpour_adagrad", "sgd", 3.0),
)


def claims(runs: Runs) -> list[Claim]:
    """Of the methods that were run, seed by seed."""
    found = times(runs)
    labels = {key: label(key, mine) for key, mine in runs.items()}
    end_s = max(run.end_s for run in runs["sgd"])
    known = [one for one in SOONER if one.quick in runs and one.slow in runs]
    nothing = {key: guessing(labels[key], mine) for key, mine in runs.items()}
    said = [
        supported(
            _sooner(one, labels, found, end_s),
            [*nothing["sgd"], *nothing[one.quick], *nothing[one.slow]],
        )
        for one in known
    ]
    if _FASTEST in runs:
        said.append(supported(_fastest(labels, found), [*itertools.chain(*nothing.values())]))
    if "downpour" in runs and "downpour_adagrad" in runs:
        said.append(supported(_rates(runs), [*nothing["downpour"], *nothing["downpour_adagrad"]]))
    return said


def _sooner(
    one: Sooner, labels: Mapping[str, str], found: Mapping[str, Sequence[float]], end_s: float
) -> Claim:
    """What never came may have come after the end: then the quick one is sooner by more."""
    agrees, listed = [], []
    for quick, slow in zip(found[one.quick], found[one.slow], strict=True):
        ratio = min(slow, end_s) / quick
        more = math.isinf(slow) and ratio > 0
        agrees.append(one.agrees(ratio, more=more))
        listed.append(f"{'more than ' if more else ''}{ratio:.2g}" if ratio else "never")
    ours = ", ".join(f"{labels[key]} {seconds(found[key])}" for key in (one.quick, one.slow))
    return Claim(one.sentence, f"{ours}: {', '.join(listed)} times", verdict(agrees))


def _fastest(labels: Mapping[str, str], found: Mapping[str, Sequence[float]]) -> Claim:
    """Of each seed: 1 if it is before all others, the GPU too; 1/2 if before all but that."""
    agrees = []
    for seed, time_s in enumerate(found[_FASTEST]):
        others = {key: times_s[seed] for key, times_s in found.items() if key != _FASTEST}
        cpus = [t for key, t in others.items() if key != "gpu"]
        agrees.append(0.5 * (time_s < min(cpus)) + 0.5 * (time_s < min(others.values())))
    ours = "; ".join(f"{labels[key]} {seconds(found[key])}" for key in by_time(found))
    return Claim("Downpour + Adagrad [200] is the fastest of all", ours, verdict(agrees))


def _rates(runs: Runs) -> Claim:
    """Section 4.1; of what was tuned, so without seeds."""
    gamma = runs["downpour_adagrad"][0].config["rule"]["gamma"]
    rate = runs["downpour"][0].config["rule"]["learning_rate"]
    return Claim(
        "gamma of Adagrad is larger, perhaps by an order of magnitude, than the best fixed rate "
        "(taken as: at least 3 times)",
        f"gamma {gamma:.3g}, rate {rate:.3g}: {gamma / rate:.2g} times",
        verdict([1.0 if gamma >= 3 * rate else 0.5 if gamma > rate else 0.0]),
    )
