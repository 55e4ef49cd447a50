"""A plain loop that is recorded: what is on disk, what is left alone, and how a run is taken up again."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput, RunFolderError, StorageError, ThalwegWarning
from thalweg.runs import files, open_run, writer
from thalweg.runs.checkpoints import Checkpoints
from thalweg.runs.recorder import Recorder
from thalweg.runs.sources.opening import trajectory


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.frozen(self.norm(self.embed(x))))


def make(seed=0, lr=0.1):
    torch.manual_seed(seed)
    model = Tied()
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)


def train(model, optimizer, steps, recorder=None, seen=None, **scalars):
    for number in range(steps):
        optimizer.zero_grad()
        x = torch.arange(5).repeat(2)
        loss = torch.nn.functional.cross_entropy(model(x), (x + number) % 5)
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.step(loss=loss, **scalars)
        if seen is not None:
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            weights = {n: p.detach().clone() for n, p in model.named_parameters()}
            seen.append((loss.item(), torch.stack(norms).norm().item(), weights))


def test_what_was_trained_is_what_is_read(tmp_path):
    model, optimizer = make()
    first = model.embed.weight.detach().clone()
    seen = []
    with Recorder(tmp_path / "run", model, optimizer, every=3, steps=10, config={"why": "test"}) as recorder:
        train(model, optimizer, 10, recorder, seen, temperature=0.5)
    run = open_run(tmp_path / "run")
    assert run.state == "finished"
    assert run.checkpoints == [0, 3, 6, 9, 10]
    assert torch.equal(run.checkpoint(0)["embed.weight"], first)
    for step in (3, 6, 9, 10):
        found = run.checkpoint(step)
        assert set(found) == {"embed.weight", "norm.weight", "norm.bias"}, "trained, and once"
        assert all(torch.equal(found[name], seen[step - 1][2][name]) for name in found)
    data = run.data
    np.testing.assert_array_equal(data.loss.values[:10], [loss for loss, *_ in seen])
    np.testing.assert_array_equal(data.learning_rate.values[:10], np.full(10, 0.1))
    np.testing.assert_array_equal(data.temperature.values[:10], np.full(10, 0.5))
    measured = data.gradient_norm.dropna("step")
    assert measured.step.values.tolist() == [0, 3, 6, 9]
    np.testing.assert_allclose(measured.values, [seen[step][1] for step in (0, 3, 6, 9)], rtol=1e-6)
    assert data.weight_norm.dropna("step").step.values.tolist() == [0, 3, 6, 9, 10]
    assert run.manifest.rule == "SGD, learning rate 0.1, momentum 0.5"
    assert run.manifest.config == {"why": "test"}
    assert run.manifest.loop["rule"]["groups"][0]["momentum"] == 0.5


def test_a_trajectory_reads_it(tmp_path):
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, every=2) as recorder:
        train(model, optimizer, 6, recorder)
    path = trajectory(tmp_path)
    assert path.steps == (0, 2, 4, 6)
    assert {info.name for info in path.tensors} == {"embed.weight", "norm.weight", "norm.bias"}
    assert np.isfinite(path.schedule["loss"][:3]).all()
    last = path.read(3, "embed.weight", 0, 20)
    assert torch.equal(last, model.embed.weight.detach().reshape(-1))


def test_so_does_the_trajectory_of_a_trained_run(tmp_path):
    problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1)))
    run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), 10, folder=tmp_path / "run", checkpoint_every=5)
    path = trajectory(tmp_path / "run")
    assert path.steps == (0, 5, 10)
    assert torch.equal(path.read(2, "weight", 0, 3), run.checkpoint(10)["weight"].reshape(-1))
    np.testing.assert_array_equal(path.schedule["loss"], run.data.loss.sel(step=[0, 5, 10]))


def test_training_is_the_same_with_and_without(tmp_path):
    ends = []
    for record in (False, True):
        model, optimizer = make()
        torch.manual_seed(7)
        if record:
            before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
            with Recorder(tmp_path, model, optimizer, every=1, bursts=(2, 3), keep=2) as recorder:
                train(model, optimizer, 7, recorder)
            assert before == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        else:
            train(model, optimizer, 7)
        ends.append((model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()))
    for key in ends[0][0]:
        assert torch.equal(ends[0][0][key], ends[1][0][key])
    assert torch.equal(ends[0][2], ends[1][2])
    for a, b in zip(ends[0][1].values(), ends[1][1].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_projections_of_bursts(tmp_path):
    model = torch.nn.Linear(60, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with Recorder(tmp_path, model, optimizer, every=50, bursts=(4, 20), sketch=64, seed=5) as recorder:
        for number in range(30):
            optimizer.zero_grad()
            model(torch.full((2, 60), 0.1 * number)).square().sum().backward()
            optimizer.step()
            recorder.step()
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    kept = Checkpoints(tmp_path / "sketches")
    assert kept.steps() == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]
    assert recorder.run.checkpoints == [0, 30]
    found = kept.read(22)
    projected = [recorder.projection.of(name, tensor) for name, tensor in seen[21].items()]
    assert torch.equal(found["projection"], torch.cat([vector for vector, _ in projected]))
    assert found["squares"].tolist() == [square for _, square in projected]
    assert found["projection"].shape == (64 + 40,)


def test_keeping_every_third_and_sketches_only(tmp_path):
    for keep, kept in ((3, [0, 6, 12, 13]), ("sketches", [0, 13])):
        model, optimizer = make()
        with Recorder(tmp_path, model, optimizer, every=2, keep=keep, steps=13, replace=True) as recorder:
            train(model, optimizer, 13, recorder)
        assert recorder.run.checkpoints == kept
        assert Checkpoints(tmp_path / "sketches").steps() == [0, 2, 4, 6, 8, 10, 12]


def test_stored_in_half_precision(tmp_path):
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, every=2, dtype=torch.bfloat16) as recorder:
        train(model, optimizer, 2, recorder)
    stored = recorder.run.checkpoint(2)["embed.weight"]
    assert torch.equal(stored, model.embed.weight.detach().bfloat16())


def test_flushed_in_the_middle(tmp_path):
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, every=1) as recorder:
        for steps in range(1, 4):
            train(model, optimizer, 1, recorder)
            recorder.flush()
            run = open_run(tmp_path)
            assert (run.state, run.checkpoints) == ("running", list(range(steps + 1)))
            assert torch.equal(run.checkpoint(-1)["norm.bias"], model.norm.bias)
            assert run.data.loss.dropna("step").sizes["step"] == steps


def test_names_without_wrappers(tmp_path):
    model, optimizer = make()
    wrapped = torch.nn.DataParallel(torch.compile(model))
    with Recorder(tmp_path, wrapped, optimizer, parameters="norm.*") as recorder:
        pass
    assert set(recorder.run.checkpoint(0)) == {"norm.weight", "norm.bias"}


class TestBudget:
    def test_predicted_bytes_are_those_on_disk(self, tmp_path):
        model = torch.nn.Linear(100, 100)
        recorder = Recorder(tmp_path, model, every=5, steps=20, keep=2, bursts=(2, 10), sketch=128)
        asked = recorder.prediction()
        assert (asked.checkpoints, asked.checkpoint_bytes) == (3, 40_400)
        with recorder:
            for _ in range(20):
                recorder.step()
        tensors = [
            tensor
            for folder in ("checkpoints", "sketches")
            for step in Checkpoints(tmp_path / folder).steps()
            for tensor in Checkpoints(tmp_path / folder).read(step).values()
        ]
        used = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert asked.bytes - asked.sketch_bytes * 3 == used, "three due steps lie in bursts"

    def test_beyond_it_nothing_begins(self, tmp_path):
        with pytest.raises(StorageError, match=r"11 checkpoints of 40,400 bytes: 444,400 bytes.*budget is 400,000"):
            Recorder(tmp_path / "run", torch.nn.Linear(100, 100), every=10, steps=100, disk_budget=400_000).open()
        assert not (tmp_path / "run").exists()

    def test_nor_beyond_what_is_free(self, tmp_path):
        with pytest.raises(StorageError, match=r"Free at .* are [0-9,]+ bytes"):
            Recorder(tmp_path / "run", torch.nn.Linear(1000, 1000), every=1, steps=10**12).open()

    def test_without_steps_it_holds_on_the_way(self, tmp_path):
        model, optimizer = make()
        recorder = Recorder(tmp_path, model, optimizer, every=1, disk_budget=600, on_error="warn")

        def go():
            with recorder:
                train(model, optimizer, 6, recorder)
                recorder._writer.join(1.0)
                train(model, optimizer, 3, recorder)

        with pytest.warns(ThalwegWarning, match=r"Recording ended, training goes on.*budget is 600"):
            go()
        run = open_run(tmp_path)
        assert run.state == "failed"
        assert "budget" in run.manifest.error
        assert run.checkpoints == list(range(600 // 112)), "of 112 bytes each"
        assert recorder.steps_done == 9


class TestTakingUp:
    def begin(self, folder, steps=7):
        model, optimizer = make()
        with Recorder(folder, model, optimizer, every=2) as recorder:
            train(model, optimizer, steps, recorder)
        return model, optimizer

    def test_from_the_last_checkpoint(self, tmp_path):
        model, optimizer = self.begin(tmp_path / "parts")
        with Recorder(tmp_path / "parts", model, optimizer, every=2, resume=True) as recorder:
            assert recorder.steps_done == 7
            train(model, optimizer, 5, recorder)
        run = open_run(tmp_path / "parts")
        assert run.checkpoints == [0, 2, 4, 6, 7, 8, 10, 12]
        assert run.data.step.values.tolist() == list(range(13))
        assert np.isfinite(run.data.loss.values[:12]).all()
        assert [entry["step"] for entry in run.manifest.resumed] == [7]
        norm = torch.cat([tensor.reshape(-1) for tensor in run.checkpoint(7).values()]).norm()
        assert run.data.weight_norm.sel(step=7) == pytest.approx(float(norm), rel=1e-6)
        assert (run.state, run.manifest.steps, run.manifest.steps_done) == ("finished", 12, 12)

    def test_from_an_earlier_one_what_is_later_goes(self, tmp_path):
        self.begin(tmp_path)
        model, optimizer = make(lr=0.2)
        with torch.no_grad():
            for name, tensor in open_run(tmp_path).checkpoint(4).items():
                model.get_parameter(name).copy_(tensor)
        with Recorder(tmp_path, model, optimizer, every=2, resume=True, start=4) as recorder:
            train(model, optimizer, 1, recorder)
        run = open_run(tmp_path)
        assert run.checkpoints == [0, 2, 4, 5]
        np.testing.assert_array_equal(run.data.learning_rate.values[:5], [0.1] * 4 + [0.2])

    def test_from_a_projection(self, tmp_path):
        model, optimizer = make()
        with Recorder(tmp_path, model, optimizer, every=2, keep="sketches") as recorder:
            train(model, optimizer, 6, recorder)
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            train(model, optimizer, 3, recorder)
        model.load_state_dict(weights)
        with Recorder(tmp_path, model, optimizer, every=2, keep="sketches", resume=True, start=6) as recorder:
            train(model, optimizer, 4, recorder)
        assert Checkpoints(tmp_path / "sketches").steps() == [0, 2, 4, 6, 8, 10]
        assert recorder.run.checkpoints == [0, 6, 10]

    def test_weights_that_are_not_those_of_the_step_are_refused(self, tmp_path):
        self.begin(tmp_path)
        before = open_run(tmp_path).checkpoints
        model, optimizer = make()
        with pytest.raises(RunFolderError, match=r"'embed\.weight' of the model is not what was recorded at step 7"):
            Recorder(tmp_path, model, optimizer, resume=True).open()
        with pytest.raises(RunFolderError, match="tensors"):
            Recorder(tmp_path, torch.nn.Linear(2, 2), resume=True).open()
        with pytest.raises(RunFolderError, match="already holds a run"):
            Recorder(tmp_path, model, optimizer).open()
        assert open_run(tmp_path).checkpoints == before
        with Recorder(tmp_path, model, optimizer, replace=True):
            pass
        assert open_run(tmp_path).checkpoints == [0]

    def test_a_run_of_train_is_not_continued(self, tmp_path):
        problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1)))
        tw.train(problem, tw.rules.GradientDescent(lr=0.1), 3, folder=tmp_path)
        with pytest.raises(RunFolderError, match="not written by a recorder"):
            Recorder(tmp_path, problem, resume=True).open()

    def test_steps_only_rise(self, tmp_path):
        model, optimizer = make()
        with Recorder(tmp_path, model, optimizer, every=10) as recorder:
            recorder.step(10)
            with pytest.raises(InvalidInput, match=r"Step 10 comes after step 10.*resume=True, start="):
                recorder.step(10)
            recorder.step(loss=1.0)
        with pytest.raises(InvalidInput, match="not open"):
            recorder.step()
        assert recorder.run.checkpoints == [0, 10, 11]


class TestDisasters:
    def test_an_error_in_the_loop(self, tmp_path):
        model, optimizer = make()

        def go():
            with Recorder(tmp_path, model, optimizer, every=2) as recorder:
                train(model, optimizer, 5, recorder)
                _ = 1 / 0

        with pytest.raises(ZeroDivisionError):
            go()
        run = open_run(tmp_path)
        assert (run.state, run.manifest.error) == ("failed", "ZeroDivisionError: division by zero")
        assert run.checkpoints == [0, 2, 4], "the weights of now may be half updated"

    def test_ctrl_c(self, tmp_path):
        model, optimizer = make()

        def go():
            with Recorder(tmp_path, model, optimizer, every=2) as recorder:
                train(model, optimizer, 5, recorder)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            go()
        run = open_run(tmp_path)
        assert run.state == "interrupted"
        assert run.checkpoints == [0, 2, 4]
        assert not list(tmp_path.rglob(".tmp-*"))

    @pytest.mark.parametrize("policy", ["exit", "raise", "warn"])
    def test_a_full_disk(self, tmp_path, monkeypatch, policy):
        model, optimizer = make()
        reached = []

        def full(tensors, path, **how):
            if any(int(name.split("/")[0]) >= 4 for name in tensors):
                path.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            save(tensors, path, **how)

        save = files.save_file
        monkeypatch.setattr(files, "save_file", full)
        monkeypatch.setattr(writer, "PACK", 0)

        def go():
            with Recorder(tmp_path, model, optimizer, every=2, on_error=policy) as recorder:
                for number in range(300):
                    train(model, optimizer, 1, recorder)
                    reached.append(number)
                    if recorder.error is None and number > 3:
                        recorder._writer.join(0.001)

        with pytest.warns(ThalwegWarning, match="Recording ended") if policy != "raise" else nullcontext():
            if policy == "warn":
                go()
            else:
                with pytest.raises(StorageError, match="No space left"):
                    go()
        assert (reached[-1] == 299) == (policy != "raise")
        run = open_run(tmp_path)
        assert run.state == "failed"
        assert run.checkpoints == [0, 2]
        assert not list(tmp_path.rglob(".tmp-*"))

    @pytest.mark.slow
    def test_killed(self, tmp_path):
        code = """
        import os, sys, torch
        from thalweg.runs.recorder import Recorder
        model = torch.nn.Linear(300, 300)
        recorder = Recorder(sys.argv[1], model, every=1).open()
        for step in range(10**6):
            with torch.no_grad():
                model.weight.fill_(step + 1)
            recorder.step(loss=float(step))
            if step == 200:
                print("here", flush=True)
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"here\n"
            process.kill()
        run = open_run(tmp_path)
        assert run.state == "interrupted"
        assert len(run.checkpoints) > 20
        for step in run.checkpoints[1:]:
            assert (run.checkpoint(step)["weight"] == step).all()
        model = torch.nn.Linear(300, 300)
        model.load_state_dict(run.checkpoint(-1))
        with Recorder(tmp_path, model, every=1, resume=True) as recorder:
            recorder.step(loss=0.0)
        assert not list(tmp_path.rglob(".tmp-*"))

    @pytest.mark.slow
    def test_ended_without_a_word(self, tmp_path):
        code = """
        import sys, torch
        from thalweg.runs.recorder import Recorder
        recorder = Recorder(sys.argv[1], torch.nn.Linear(3, 3), every=1).open()
        for step in range(5):
            recorder.step(loss=float(step))
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
        run = open_run(tmp_path)
        assert run.manifest.state == "interrupted"
        assert run.checkpoints == [0, 1, 2, 3, 4, 5]
        assert run.data.loss.values.tolist()[:5] == [0, 1, 2, 3, 4]

    def test_weights_that_are_nan_are_told(self, tmp_path):
        model, optimizer = make()
        with Recorder(tmp_path, model, optimizer, every=1) as recorder:
            with torch.no_grad():
                model.norm.bias[0] = float("nan")
            recorder.step(loss=float("nan"))
        assert [(event.step, event.kind) for event in recorder.run.events] == [(1, "non_finite")]

    def test_only_one_writes(self, tmp_path):
        model, optimizer = make()
        with Recorder(tmp_path, model, optimizer):
            with pytest.raises(RunFolderError, match="already holds a run"):
                Recorder(tmp_path, model, optimizer).open()
            with pytest.raises(RunFolderError, match="Another process is writing"):
                Recorder(tmp_path, model, optimizer, resume=True).open()


def test_snapshots_that_wait_are_bounded(tmp_path, monkeypatch):
    gate, model = threading.Event(), torch.nn.Linear(4, 4)
    keep = writer.Writer._keep
    monkeypatch.setattr(writer.Writer, "_keep", lambda self, point: (gate.wait(), keep(self, point)))
    recorder = Recorder(tmp_path, model, every=1, queue=2)
    done = []

    def go():
        with recorder:
            for number in range(8):
                recorder.step()
                done.append(number)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    assert len(done) <= 3, "one is being written, two wait"
    gate.set()
    thread.join(300)
    assert not thread.is_alive()
    assert recorder.run.checkpoints == list(range(9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 is out"),
        ({"queue": 0}, "queue=0 is out"),
        ({"steps": -1}, "steps=-1 is out"),
        ({"on_error": "stop"}, "on_error"),
        ({"dtype": torch.int8}, "floating"),
        ({"resume": True, "replace": True}, "together"),
        ({"forward": [3]}, "cannot be forwarded"),
        ({"sketch": 0}, "size of the projection"),
        ({"parameters": "nothing"}, "No parameter matches"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        Recorder(tmp_path / "run", torch.nn.Linear(2, 2), **settings)
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_or_no_number(tmp_path):
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Module"):
        Recorder(tmp_path, {"w": torch.zeros(3)})
    with (
        Recorder(tmp_path, torch.nn.Linear(2, 2)) as recorder,
        pytest.raises(InvalidInput, match="A row holds numbers"),
    ):
        recorder.step(loss=torch.zeros(3))


class Board:
    def __init__(self):
        self.seen = []

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))


class Tracker:
    def __init__(self):
        self.seen = []

    def log(self, scalars, step=None):
        self.seen.append((step, scalars))


def test_scalars_go_to_trackers(tmp_path):
    board, tracker, rows = Board(), Tracker(), []
    model, optimizer = make()
    forward = [board, tracker, lambda scalars, step: rows.append(step)]
    with Recorder(tmp_path, model, optimizer, forward=forward) as recorder:
        train(model, optimizer, 4, recorder)
    loss = recorder.run.data.loss.values
    assert [value for name, value, _ in board.seen if name == "loss"] == loss[:4].tolist()
    assert [step for step, _ in tracker.seen] == rows == [0, 1, 2, 3]
    assert set(tracker.seen[0][1]) == {"loss", "learning_rate", "gradient_norm"}


def test_a_tracker_that_fails_costs_nothing_else(tmp_path):
    def broken(scalars, step):
        raise RuntimeError("offline")

    model, optimizer = make()
    with (
        pytest.warns(ThalwegWarning, match="Forwarding scalars failed at step 0: RuntimeError: offline"),
        Recorder(tmp_path, model, optimizer, forward=[broken]) as recorder,
    ):
        train(model, optimizer, 4, recorder)
    assert recorder.run.state == "finished"
    assert np.isfinite(recorder.run.data.loss.values[:4]).all()


def test_the_report_and_the_manifest_are_plain(tmp_path):
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, every=5) as recorder:
        train(model, optimizer, 30, recorder)
    assert json.loads((tmp_path / "manifest.json").read_text())["loop"]["recorder"]["every"] == 5
    page = tw.write_report(recorder.run)
    assert "SGD, learning rate 0.1" in page.read_text()
