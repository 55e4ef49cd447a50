"""Windows of whole epochs, where samples are drawn without replacement and the log tells."""

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.stationarity.assess import assess
from thalweg.stationarity.logs import history
from thalweg.stationarity.windows import Window, epoch_starts, whole_epochs


class TestStarts:
    def test_counted_in_whole_numbers_or_parts(self):
        steps = np.arange(0, 400, 2)
        for epoch in (steps // 50, steps / 50, 1 + steps // 50):
            assert epoch_starts(steps, epoch.astype(float)).tolist() == [50, 100, 150, 200, 250, 300, 350, 400]

    def test_the_end_counts_where_it_ends_an_epoch(self):
        assert epoch_starts(np.arange(95), np.arange(95.0) // 10)[-1] == 90
        assert epoch_starts(np.arange(90), np.arange(90.0) // 10)[-1] == 90

    def test_gaps_are_filled(self):
        epoch = np.full(40, np.nan)
        epoch[::10] = [0, 1, 2, 3]
        assert epoch_starts(np.arange(40), epoch).tolist() == [10, 20, 30, 40]

    @pytest.mark.parametrize(
        "epoch", [np.full(40, np.nan), np.zeros(40), np.arange(40.0), np.arange(40.0) % 20, 3 * (np.arange(40.0) // 10)]
    )
    def test_what_tells_nothing(self, epoch):
        assert epoch_starts(np.arange(40), epoch) is None


class TestWholeEpochs:
    @pytest.mark.parametrize("length", [7, 10, 33])
    @pytest.mark.parametrize("start", [500, 511, 530])
    def test_it_is_of_whole_epochs_and_no_shorter(self, start, length):
        starts = np.arange(0, 1300, length)
        before = Window(start, 1203, {"learning_rate": 0.1})
        found = whole_epochs(before, starts)
        assert found.start % length == 0
        assert (found.stop + 1) % length == 0
        assert found.stop + 1 - found.start == found.epochs * length > before.steps
        assert before.stop - length < found.stop <= before.stop
        assert before.start - found.start <= 0.25 * before.steps
        assert found.epochs % 4 == 0
        assert found.settings == before.settings

    def test_what_is_left_as_it_is(self):
        window = Window(500, 999)
        assert whole_epochs(window, None) is window
        assert whole_epochs(window, np.arange(0, 1100, 400)) is window  # two epochs would begin at 0
        assert whole_epochs(window, np.array([0, 990])) is window
        assert whole_epochs(window, np.arange(0, 1100, 30), earliest=490) is window  # not into another rate

    def test_the_start_stays_within_the_segment(self):
        assert whole_epochs(Window(500, 999), np.arange(0, 1100, 30), earliest=480).start == 480


def saw(seed: int, epoch: int = 150, n: int = 6050) -> dict[str, np.ndarray]:
    """A loss that falls within each epoch and is back at its start: settled, with the epoch for its period."""
    rng, t = np.random.default_rng(seed), np.arange(n)
    probes = np.full(n, np.nan)
    probes[:: n // 100] = 1 + 0.3 * rng.standard_normal(len(probes[:: n // 100]))
    loss = 2 - 2 * ((t % epoch) / epoch - 0.5) + 0.3 * rng.standard_normal(n)
    return {"loss": loss, "gradient_unbiased": probes, "epoch": (t // epoch).astype(float)}


class TestVerdicts:
    def test_a_period_of_an_epoch_is_no_change(self):
        logs = [saw(seed, n=6100) for seed in range(20)]
        found = [assess(one, floor=0.05, permutations=99) for one in logs]
        assert {one.loss.state for one in found} == {"settled"}
        assert repr(found[0].window) == "steps 2,400 to 5,999, 24 whole epochs"
        cut = [{name: x for name, x in one.items() if name != "epoch"} for one in logs]
        kinds = [assess(one, floor=0.05, permutations=99).kind for one in cut]
        assert "unstable" in kinds  # parts of epochs in the halves are taken for a rise

    def test_a_window_that_is_given_is_not_moved(self):
        assert assess(saw(0), floor=0.05, window=(3010, 6001)).window == Window(3010, 6001)

    def test_numbers_of_samples_tell_too(self):
        log = saw(0)
        t = np.arange(len(log.pop("epoch")))
        log |= {"samples": np.full(len(t), 1498.0), "batch_size": np.full(len(t), 10.0)}
        found = assess(log, floor=0.05, permutations=99).window
        assert (found.start, found.stop, found.epochs) == (2400, 5999, 24)
        assert history({"loss": log["loss"], "batch_size": log["batch_size"]}).epochs is None

    def test_a_run(self):
        x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x[:, :1]))
        rule = tw.rules.GradientDescent(lr=0.05)
        whole, full = tw.train(problem, rule, 227, batch_size=8), tw.train(problem, rule, 20)
        assert history(whole).epochs.tolist() == list(range(0, 229, 7))
        assert assess(whole).window.epochs == 18  # of seven steps; 114 to 227 was a half
        assert (assess(whole).window.start, assess(whole).window.stop) == (98, 223)
        assert history(full).epochs is None
        assert assess(full).window.epochs is None
