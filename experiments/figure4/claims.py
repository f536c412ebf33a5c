"""Compares what section 5 of the paper says about Figure 4 with the runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.accuracy import guessing
from experiments.claims import Claim, supported, verdict
from experiments.figure4.results import Runs, by_time, label, seconds, times


class Sooner(NamedTuple):
    """The claim that one method is faster than another, with a numeric interpretation.

    Attributes:
      words: the claim in words.
      quick: the key of the method that is claimed to be faster.
      slow: the key of the method that it is compared with.
      least: the smallest ratio of times that agrees with the claim.
      most: the largest ratio of times that agrees with the claim.
    """

    words: str
    quick: str
    slow: str
    least: float = 1.0
    most: float = math.inf

    @property
    def sentence(self) -> str:
        """The claim in words, followed by its interpretation."""
        bound = f"at least {self.least:g}" if math.isinf(self.most) else f"1 to {self.most:g}"
        return f"{self.words} (taken as: by a factor of {bound})"

    def agrees(self, ratio: float, *, more: bool) -> float:
        """Returns 1 if the ratio is in the claimed range, 1/2 if it is just above 1, else 0.

        Args:
          ratio: the time of the slow method divided by that of the quick one.
          more: whether `ratio` is only a lower bound.
        """
        if ratio <= 1:
            return 0.0
        most = math.inf if more else ratio
        return 1.0 if self.least <= ratio and most <= self.most else 0.5


_FASTEST, _AIM = "downpour_adagrad_200", "our aim, not the paper's"
SOONER = (
    Sooner("Downpour [20] is clearly faster than SGD [1]", "downpour", "sgd", 1.5),
    Sooner(
        "Downpour + Adagrad [20] is modestly faster again", "downpour_adagrad", "downpour", most=2.0
    ),
    Sooner(
        "Sandblaster [2000] is considerably faster again", "sandblaster", "downpour_adagrad", 2.0
    ),
    Sooner("with enough CPUs, Sandblaster beats the GPU", "sandblaster", "gpu"),
    Sooner("with enough CPUs, Downpour + Adagrad [200] beats the GPU", _FASTEST, "gpu"),
    Sooner(f"({_AIM}) Downpour + Adagrad [20] beats SGD [1]", "downpour_adagrad", "sgd", 3.0),
)


def claims(runs: Runs) -> list[Claim]:
    """Returns the claims about those methods that were run, compared seed by seed."""
    found = times(runs)
    labels = {key: label(key, mine) for key, mine in runs.items()}
    end_s = max(run.end_s for run in runs["sgd"])
    known = [one for one in SOONER if one.quick in runs and one.slow in runs]
    nothing = {key: guessing(labels[key], mine) for key, mine in runs.items()}
    message = [
        supported(
            _sooner(one, labels, found, end_s),
            [*nothing["sgd"], *nothing[one.quick], *nothing[one.slow]],
        )
        for one in known
    ]
    if _FASTEST in runs:
        message.append(supported(_fastest(labels, found), [*itertools.chain(*nothing.values())]))
    if "downpour" in runs and "downpour_adagrad" in runs:
        message.append(
            supported(_rates(runs), [*nothing["downpour"], *nothing["downpour_adagrad"]])
        )
    return message


def _sooner(
    one: Sooner, labels: Mapping[str, str], found: Mapping[str, Sequence[float]], end_s: float
) -> Claim:
    """Compares the times of two methods.

    A slow run that never reaches the target might reach it after the end, so that the ratio of the
    times is only a lower bound.
    """
    agrees, listed = [], []
    for quick, slow in zip(found[one.quick], found[one.slow], strict=True):
        ratio = min(slow, end_s) / quick
        more = math.isinf(slow) and ratio > 0
        agrees.append(one.agrees(ratio, more=more))
        listed.append(f"{'more than ' if more else ''}{ratio:.2g}" if ratio else "not reached")
    ours = ", ".join(f"{labels[key]} {seconds(found[key])}" for key in (one.quick, one.slow))
    return Claim(one.sentence, f"{ours}; ratio in each seed: {', '.join(listed)}", verdict(agrees))


def _fastest(labels: Mapping[str, str], found: Mapping[str, Sequence[float]]) -> Claim:
    """Scores each seed: 1 if it beats all others, 1/2 if it beats all but the GPU, else 0."""
    agrees = []
    for seed, time_s in enumerate(found[_FASTEST]):
        others = {key: times_s[seed] for key, times_s in found.items() if key != _FASTEST}
        cpus = [t for key, t in others.items() if key != "gpu"]
        agrees.append(0.5 * (time_s < min(cpus)) + 0.5 * (time_s < min(others.values())))
    ours = "; ".join(f"{labels[key]} {seconds(found[key])}" for key in by_time(found))
    return Claim("Downpour + Adagrad [200] is the fastest of all", ours, verdict(agrees))


def _rates(runs: Runs) -> Claim:
    """Compares the tuned rates, which do not depend on the seed (section 4.1 of the paper)."""
    gamma = runs["downpour_adagrad"][0].config["rule"]["gamma"]
    rate = runs["downpour"][0].config["rule"]["learning_rate"]
    return Claim(
        "gamma of Adagrad is larger than the best fixed rate, perhaps by an order of magnitude "
        "(taken as: by a factor of at least 3)",
        f"gamma {gamma:.3g}, rate {rate:.3g}; ratio {gamma / rate:.2g}",
        verdict([1.0 if gamma >= 3 * rate else 0.5 if gamma > rate else 0.0]),
    )
