"""Verdicts on the paper's sentences."""

import pytest

from experiments.claims import Claim, markdown, verdict


@pytest.mark.parametrize(
    ("agrees", "said"),
    [
        ([1, 1, 1], "holds"),
        ([1, 1, 0], "holds in part"),  # one seed against it
        ([1, 0.5, 1], "holds in part"),
        ([0.5], "holds in part"),
        ([0, 0], "does not hold here"),
        ([True, True], "holds"),
        ([False], "does not hold here"),
    ],
)
def test_a_sentence_holds_if_every_seed_agrees(agrees, said):
    assert verdict(agrees) == said


def test_a_table_has_a_row_for_each_claim():
    table = markdown([Claim("a", "1", "holds"), Claim("b", "2", "fitted")], "here")
    assert table.splitlines() == [
        "| the paper | here | |", "|---|---|---|", "| a | 1 | holds |", "| b | 2 | fitted |"
    ]  # fmt: skip
