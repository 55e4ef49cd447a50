"""Logs from elsewhere: guessed columns, order, duplicates, gaps, what is not a number, exports of W&B."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.phases.regimes import segment
from thalweg.runs.logs import read_log


@pytest.fixture
def log(tmp_path):
    def write(text, columns=None):
        path = tmp_path / "log.csv"
        path.write_text(text)
        return read_log(path, columns)

    return write


def test_columns_are_guessed_and_shown(log):
    found = log("global_step,Train/Loss,top_eigenvalue,lr\n0,2,9,0.1\n1,1,8,0.1\n")
    assert found.columns == {
        "step": "global_step",
        "loss": "Train/Loss",
        "sharpness": "top_eigenvalue",
        "learning_rate": "lr",
    }
    assert "loss = Train/Loss" in found.notes[0]


def test_an_export_of_one_run(log):
    text = '"Step","calm-sea-3 - train/loss","calm-sea-3 - train/loss__MIN","calm-sea-3 - train/loss__MAX"\n'
    found = log(text + '"0","2","1.9","2.1"\n"1","1.5","1.4","1.6"\n')
    assert found.loss.tolist() == [2.0, 1.5]


def test_an_export_of_two_runs_is_refused(log):
    with pytest.raises(InvalidInput, match="One run has one"):
        log("Step,a - loss,b - loss\n0,1,2\n")
    assert log("Step,a - loss,b - loss\n0,1,2\n", {"loss": "b - loss"}).loss.tolist() == [2.0]


def test_rows_are_sorted_and_joined(log):
    found = log("step,loss,sharpness\n2,0.5,\n0,1.0,9\n1,0.7,\n1,,8\n2,0.6,7\n")
    assert found.steps.tolist() == [0, 1, 2]
    assert found.loss.tolist() == [1.0, 0.7, 0.6]
    np.testing.assert_array_equal(found.sharpness, [9, 8, 7])
    assert any("sorted" in note for note in found.notes)
    assert any("2 rows repeat a step" in note and "loss disagree" in note for note in found.notes)


def test_gaps_are_not_measurements(log):
    found = log("step,loss,sharpness,lr\n0,1.0,9,0.1\n5,,8,\n10,0.5,,0.05\n")
    assert found.loss.tolist() == [1.0, 1.0, 0.5]
    assert found.learning_rate.tolist() == [0.1, 0.1, 0.05]
    assert found.arguments()["sharpness_steps"].tolist() == [0, 5]


@pytest.mark.parametrize("word", ["NaN", "nan", "Infinity", "inf"])
def test_a_loss_that_is_written_as_no_number_has_diverged(log, word):
    found = log(f"step,loss\n0,1\n1,2\n2,{word}\n")
    assert found.loss[-1] == np.inf
    assert segment(**found.arguments()).order[-1] == "diverged"


def test_sharpness_without_a_number_is_noted(log):
    found = log("step,loss,sharpness\n0,1,NaN\n1,0.5,nan\n")
    assert found.sharpness is None
    assert any("not measured" in note for note in found.notes)


def test_without_steps_rows_are_counted(log):
    found = log("loss\n3\n2\n1\n")
    assert found.steps.tolist() == [0, 1, 2]
    assert any("rows are counted" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a,b\n1,2\n", None, "looks like a loss"),
        ("step,loss\n0,1\n", {"loss": "nll"}, "no column 'nll'"),
        ("step,loss\n0,1\n", {"accuracy": "loss"}, "no curve 'accuracy'"),
        ("step,loss\n0.5,1\n", None, "no step"),
        ("step,loss\n0,low\n", None, "'low' in row 1"),
        ("step,loss\n0,\n", None, "has a loss"),
        ("", None, "no table"),
    ],
)
def test_bad_tables_are_explained(log, text, columns, words):
    with pytest.raises(InvalidInput, match=words):
        log(text, columns)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(InvalidInput, match="no file"):
        read_log(tmp_path / "none.csv")


def test_what_is_read_equals_what_was_written(log):
    rng = np.random.default_rng(0)
    loss, lam = rng.uniform(0.1, 1, 40), rng.uniform(1, 9, 40)
    rows = [f"{t},{float(loss[t])!r},{float(lam[t])!r}" for t in rng.permutation(40)]
    found = log("step,loss,sharpness\n" + "\n".join(rows) + "\n")
    np.testing.assert_array_equal(found.loss, loss)
    np.testing.assert_array_equal(found.sharpness, lam)


def test_other_columns_of_numbers_come_along(log):
    found = log("step,loss,gradient_unbiased,note,empty\n2,1.0,,a,\n0,2.0,0.5,b,\n1,,,c,\n")
    assert list(found.others) == ["gradient_unbiased"]
    np.testing.assert_array_equal(found.others["gradient_unbiased"], [0.5, np.nan, np.nan])
    assert found.logged.tolist() == [True, False, True]
    assert found.loss.tolist() == [2.0, 2.0, 1.0]


def test_a_column_that_only_hints_at_curvature_is_taken_if_it_is_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,hessian_top,speed\n0,1.0,5,3\n1,0.5,6,4\n")
    log = read_log(path)
    assert log.sharpness.tolist() == [5.0, 6.0]
    assert any("not recognised: speed" in note for note in log.notes)
    path.write_text("step,loss,hessian_top,hessian_bottom\n0,1.0,5,3\n1,0.5,6,4\n")
    log = read_log(path)
    assert log.sharpness is None
    assert any("hessian_top, hessian_bottom" in note for note in log.notes)
