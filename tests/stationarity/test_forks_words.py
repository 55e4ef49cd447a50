"""What the copies say together: no word of agreement beside a number that denies it."""

import numpy as np
import pytest

from thalweg.stationarity.forks import Forks


@pytest.mark.parametrize(
    ("rhat", "words"),
    [
        ({"loss": 1.001, "weight_norm": 1.002}, "The copies agree."),
        ({"loss": 1.001, "weight_norm": 1.76}, "Loss and function agree and weights do not"),
        ({"loss": 1.001, "weight_sketch": 1.76}, "Loss and function agree and weights do not"),
        ({"loss": 1.02, "weight_norm": 1.76}, "longer ones would tell"),
        ({"loss": 1.2, "weight_norm": 1.0}, "The copies differ in what they compute"),
    ],
)
def test_words(rhat, words):
    copies = Forks({"loss": np.zeros((4, 20))}, rhat, dict.fromkeys(rhat, 80.0), 300, 40)
    assert words in copies.words
    assert words in repr(copies)
