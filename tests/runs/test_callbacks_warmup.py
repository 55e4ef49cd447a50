"""The warm-up callbacks against the formula, a search by hand, other schedulers, and what is resumed."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
import warmup_worker
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from thalweg.errors import InvalidInput, ThalwegWarning
from thalweg.optim.gi_adam import gi_adam_
from thalweg.optim.search import critical_learning_rate
from thalweg.problem import Problem
from thalweg.runs import open_run
from thalweg.runs.callbacks_warmup import Warming, first_gradient_adam, first_problem

STEPS = 12
SCHEDULES = {
    "none": lambda opt: None,
    "linear": lambda opt: LambdaLR(opt, lambda step: 1 - step / 40),
    "cosine": lambda opt: CosineAnnealingLR(opt, 20),  # recursive: from the rate that it finds
    "steps": lambda opt: StepLR(opt, 3, 0.5),
    "plateau": lambda opt: ReduceLROnPlateau(opt, patience=1, factor=0.5),
    "chained": lambda opt: ChainedScheduler([ExponentialLR(opt, 0.9), StepLR(opt, 4, 0.5)]),
    "sequence": lambda opt: SequentialLR(opt, [StepLR(opt, 2, 0.5), CosineAnnealingLR(opt, 10)], [4]),
}


def two_groups(tensors=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    rates = [torch.tensor(rate, dtype=torch.float64) if tensors else rate for rate in (30.0, 3.0)]
    groups = [{"params": model[0].parameters(), "lr": rates[0]}, {"params": model[2].parameters(), "lr": rates[1]}]
    kind = torch.optim.Adam if tensors else torch.optim.SGD
    return model, kind(groups, lr=1.0, **({"foreach": False} if tensors else {}))


BATCH = tuple(tensor.double() for tensor in warmup_worker.data())
LOSS = nn.MSELoss()


def step_of(scheduler):
    """A step of any scheduler; the plateau's is told a loss that never falls."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(1.0)
    elif scheduler is not None:
        scheduler.step()


def fit(opt, scheduler, steps, warming=None, model=None):
    """The rates of each update, and what the scheduler says after it."""
    seen, told = [], []
    for _ in range(steps):
        if model is not None:
            opt.zero_grad()
            LOSS(model(BATCH[0]), BATCH[1]).backward()
        if warming is not None and warming.ramp is None:
            warming.measure(Problem(model, LOSS, BATCH))
        seen.append([float(group["lr"]) for group in opt.param_groups])
        opt.step()
        step_of(scheduler)
        if warming is not None:
            warming.apply()
        told.append(None if scheduler is None else [float(rate) for rate in scheduler.get_last_lr()])
    return seen, told


def plain(name, steps=STEPS, tensors=False):
    _, opt = two_groups(tensors)
    return fit(opt, SCHEDULES[name](opt), steps)[0]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_a_factor_on_any_schedule(name, tensors):
    model, opt = two_groups(tensors)
    scheduler = SCHEDULES[name](opt)
    kind = type(scheduler)
    warming = Warming(6, {})
    warming.attach(opt, [scheduler])
    seen, told = fit(opt, scheduler, STEPS, warming, model)
    start = warming.found.initial / 30.0
    assert 0 < start < 0.5
    assert warming.ramp.length in (4, 5, 6)
    for step, (rates, wanted) in enumerate(zip(seen, plain(name, tensors=tensors))):
        assert rates == pytest.approx([rate * min(1, start + step / 6) for rate in wanted], rel=1e-12)
    if scheduler is not None:
        for after, before in zip(seen[1:], told):
            assert after == pytest.approx(before, rel=1e-12), "what a Trainer logs"
    assert type(scheduler) is kind
    assert not opt._optimizer_step_post_hooks


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cut", [2, 8])
def test_it_goes_on_from_a_checkpoint(name, cut):
    model, opt = two_groups()
    scheduler, warming = SCHEDULES[name](opt), Warming(6, {})
    warming.attach(opt, [scheduler])
    whole = fit(opt, scheduler, STEPS, warming, model)[0]

    model, opt = two_groups()
    scheduler, warming = SCHEDULES[name](opt), Warming(6, {})
    warming.attach(opt, [scheduler])
    first = fit(opt, scheduler, cut, warming, model)[0]
    held = io.BytesIO()
    torch.save([opt.state_dict(), scheduler and scheduler.state_dict(), model.state_dict()], held)
    state = json.loads(json.dumps(warming.state()))
    held.seek(0)
    saved = torch.load(held, weights_only=True)

    model, opt = two_groups()
    scheduler, warming = SCHEDULES[name](opt), Warming(6, {})
    opt.load_state_dict(saved[0])
    model.load_state_dict(saved[2])
    if scheduler is not None:
        scheduler.load_state_dict(saved[1])
    warming.load(state)
    warming.attach(opt, [scheduler])
    assert warming.active == (cut == 2)
    rest = fit(opt, scheduler, STEPS - cut, warming, model)[0]
    assert first + rest == [pytest.approx(rates, rel=1e-12) for rates in whole]


def test_a_checkpoint_of_another_optimizer_is_refused():
    model, opt = two_groups()
    warming = Warming(6, {})
    warming.attach(opt, [])
    fit(opt, None, 1, warming, model)
    other = Warming(6, {})
    other.load(warming.state())
    with pytest.raises(InvalidInput, match="2 parameter groups"):
        other.attach(torch.optim.SGD(model.parameters(), lr=1.0), [])


def test_the_measurement_is_that_of_the_search():
    model, opt = two_groups()
    wanted = critical_learning_rate((model, LOSS, BATCH), opt, target=30.0)
    warming = Warming(6, {})
    warming.attach(opt, [])
    LOSS(model(BATCH[0]), BATCH[1]).backward()
    batches = [(BATCH[0][i::3], BATCH[1][i::3]) for i in range(3)]
    found = warming.measure(first_problem(model, warmup_worker.evaluate, batches))
    assert found.learning_rate == pytest.approx(wanted.learning_rate, rel=1e-9)
    assert found.gradients == 0
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([found.initial, found.initial / 10])


def test_measuring_changes_nothing_else():
    """Dropout, running statistics, weights: bit for bit those of a run that is told the rates and measures nothing."""

    def train(rates=None):
        torch.manual_seed(0)
        layers = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2)
        model = nn.Sequential(*layers).double()
        opt = torch.optim.SGD(model.parameters(), lr=3.0 if rates is None else rates[0], momentum=0.9)
        warming, seen = Warming(6, {}), []
        warming.attach(opt, [])
        for step in range(4):
            opt.zero_grad()
            LOSS(model(BATCH[0]), BATCH[1]).backward()
            if rates is not None:
                opt.param_groups[0]["lr"] = rates[step]
            elif step == 0:
                warming.measure(first_problem(model, warmup_worker.evaluate, [BATCH]))
            seen.append(opt.param_groups[0]["lr"])
            opt.step()
            warming.apply()
        return seen, [*model.state_dict().values(), torch.rand(3)]

    seen, ours = train()
    assert seen[0] < 3
    assert all(bool(tensor.isfinite().all()) for tensor in ours)
    assert all(torch.equal(one, other) for one, other in zip(ours, train(seen)[1]))


@pytest.mark.parametrize(
    "other",
    [
        lambda opt: LinearLR(opt, 0.1),
        lambda opt: OneCycleLR(opt, [30.0, 3.0], total_steps=50),
        lambda opt: LambdaLR(opt, lambda step: min(1, step / 5)),
    ],
)
def test_a_schedule_that_warms_up_itself_is_refused(other):
    model, opt = two_groups()
    other(opt)
    warming = Warming(6, {})
    warming.attach(opt, [])
    LOSS(model(BATCH[0]), BATCH[1]).backward()
    with pytest.raises(InvalidInput, match="warm-up of its own"):
        warming.measure(Problem(model, LOSS, BATCH))


def test_what_cannot_be_done_is_refused():
    model, _ = two_groups()
    with pytest.raises(InvalidInput, match="ramp"):
        Warming(0, {})
    with pytest.raises(InvalidInput, match="optimizer is a Linear"):
        Warming(5, {}).attach(model[0], [])
    with pytest.raises(InvalidInput, match="No batch was seen"):
        first_problem(model, warmup_worker.evaluate, [])

    class FlatParameter(nn.Parameter):
        pass

    with pytest.raises(InvalidInput, match="shards"):
        Warming(5, {}).attach(torch.optim.SGD([FlatParameter(torch.zeros(3))], lr=0.1), [])


def test_gi_adam_comes_before_the_measurement():
    model, _ = two_groups()
    opt = torch.optim.Adam(model.parameters(), lr=30.0)
    LOSS(model(BATCH[0]), BATCH[1]).backward()
    warming = Warming(6, {})
    warming.attach(opt, [])
    warming.measure(Problem(model, LOSS, BATCH))
    with pytest.raises(InvalidInput, match="List GIAdamCallback before"):
        first_gradient_adam(opt)


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, warmup_worker.__file__, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = json.loads(path.read_text())
    assert first == second, "the processes would drift apart"
    model = warmup_worker.build()
    alone = warmup_worker.measure(model, model, [warmup_worker.data()])
    assert first[0] == pytest.approx(alone[0], rel=1e-6)
    assert first[3] == pytest.approx(alone[3], rel=1e-12)


def optimizer_of(model, adam):
    return torch.optim.Adam(model.parameters(), lr=10.0) if adam else torch.optim.SGD(model.parameters(), lr=30.0)


def by_hand(adam, accumulate, clip, frame):
    """The critical learning rate of the first update, from the data in its order: what the callbacks must find."""
    model = frame()
    opt = optimizer_of(model, adam)
    rows = slice(0, 4 * accumulate)
    inputs, targets = (tensor[rows] for tensor in BATCH)
    LOSS(model(inputs), targets).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    if adam:
        gi_adam_(opt)
    return critical_learning_rate(
        (model, LOSS, (inputs, targets)), opt, target=opt.param_groups[0]["lr"], gradient="grad"
    )


def rates_used(opt):
    """Note what every update of an optimizer uses."""
    seen = []
    opt.register_step_post_hook(lambda opt, arguments, settings: seen.append(opt.param_groups[0]["lr"]))
    return seen


@pytest.mark.slow
class TestTransformers:
    def go(self, own, steps=8, adam=False, accumulate=1, callbacks=None, **settings):
        transformers = pytest.importorskip("transformers")
        from thalweg.runs.callbacks_warmup_transformers import CriticalWarmupCallback, GIAdamCallback

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = warmup_worker.build()

            def forward(self, inputs, labels=None):
                out = self.net(inputs)
                return {"loss": LOSS(out, labels), "logits": out} if labels is not None else {"logits": out}

        model = Model()
        opt = optimizer_of(model, adam)
        seen = rates_used(opt)
        callback = CriticalWarmupCallback(6)
        ours = ([GIAdamCallback()] if adam else []) + [callback]
        arguments = transformers.TrainingArguments(
            **{
                "output_dir": str(own),
                "max_steps": steps,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": accumulate,
                "max_grad_norm": 0.5,
                "logging_steps": 1,
                "save_steps": 3,
                "report_to": [],
                "use_cpu": True,
                "disable_tqdm": True,
            }
            | settings
        )

        class InOrder(transformers.Trainer):
            def _get_train_sampler(self, *_):
                return torch.utils.data.SequentialSampler(self.train_dataset)

        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=[{"inputs": x, "labels": y} for x, y in zip(*BATCH)],
            callbacks=ours if callbacks is None else callbacks(ours),
            optimizers=(opt, None),
        )
        return trainer, callback, seen, model

    @pytest.mark.parametrize(("adam", "accumulate"), [(False, 1), (True, 1), (False, 3)])
    def test_a_run(self, tmp_path, adam, accumulate):
        trainer, callback, seen, _ = self.go(tmp_path, adam=adam, accumulate=accumulate)
        trainer.train()
        wanted = by_hand(adam, accumulate, 0.5, warmup_worker.build)
        assert callback.found.learning_rate == pytest.approx(wanted.learning_rate, rel=1e-6)
        target = 10.0 if adam else 30.0
        start = callback.found.initial / target
        assert 0 < start < 1
        ramped = [target * (1 - step / 8) * min(1, start + step / 6) for step in range(8)]
        assert seen == pytest.approx(ramped, rel=1e-9)
        logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert logged == pytest.approx(ramped, rel=1e-9), "the Trainer's own log has the rates that were used"

    @pytest.mark.parametrize("first", [False, True])
    def test_a_recorder_beside_it_records_the_rates_that_were_used(self, tmp_path, first):
        pytest.importorskip("transformers")
        from thalweg.runs.callbacks_transformers import TrajectoryCallback

        recorder = TrajectoryCallback(tmp_path / "run", every=4)
        both = (lambda ours: [recorder, *ours]) if first else (lambda ours: [*ours, recorder])
        trainer, _, seen, _ = self.go(tmp_path / "own", callbacks=both)
        trainer.train()
        assert open_run(tmp_path / "run").data.learning_rate.values.tolist()[:8] == pytest.approx(seen, rel=1e-9)

    @pytest.mark.parametrize("restore", [False, True])
    def test_it_resumes(self, tmp_path, restore):
        trainer, _, whole, first = self.go(tmp_path)
        trainer.train()
        restored = {"restore_callback_states_from_checkpoint": restore}
        trainer, again, rest, second = self.go(tmp_path, **restored)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert whole[3:] == pytest.approx(rest, rel=1e-12)
        for one, other in zip(first.parameters(), second.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
        assert again.found is None, "nothing was measured anew"

    def test_what_it_does_not_combine_with(self, tmp_path):
        trainer, *_ = self.go(tmp_path / "warm", warmup_steps=3)
        with pytest.raises(InvalidInput, match="warm-up of its own"):
            trainer.train()
        trainer, *_ = self.go(tmp_path / "order", adam=True, callbacks=lambda ours: ours[::-1])
        with pytest.raises(InvalidInput, match="List GIAdamCallback before"):
            trainer.train()
        trainer, *_ = self.go(tmp_path / "none", callbacks=lambda ours: [])
        trainer.train()
        trainer, callback, seen, _ = self.go(tmp_path / "none")
        with pytest.warns(ThalwegWarning, match="without a warm-up: none is done"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "none" / "checkpoint-6"))
        assert callback.ramp is None
        assert seen == pytest.approx([30 * (1 - step / 8) for step in (6, 7)])

    def test_a_loss_that_the_model_does_not_give(self, tmp_path):
        trainer, callback, *_ = self.go(tmp_path)
        trainer.compute_loss = lambda model, inputs, **_: LOSS(model(inputs["inputs"])["logits"], inputs["labels"])
        with pytest.raises(InvalidInput, match="where=lambda model"):
            trainer.train()
        trainer, callback, *_ = self.go(tmp_path / "where")
        trainer.compute_loss = lambda model, inputs, **_: LOSS(model(inputs["inputs"])["logits"], inputs["labels"])
        callback.where = lambda model: (model.net, LOSS, tuple(tensor[:4] for tensor in BATCH))
        trainer.train()
        wanted = by_hand(False, 1, 0.5, warmup_worker.build)
        assert callback.found.learning_rate == pytest.approx(wanted.learning_rate, rel=1e-6)


@pytest.mark.slow
class TestLightning:
    def go(self, steps=8, adam=False, accumulate=1, schedule="linear", callbacks=None, batch=4, **settings):
        lightning = pytest.importorskip("lightning")
        from thalweg.runs.callbacks_warmup_lightning import CriticalWarmupCallback, GIAdamCallback

        class Model(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = warmup_worker.build()

            def training_step(self, batch, number):
                loss = LOSS(self.net(batch[0]), batch[1])
                self.log("loss", loss, on_step=True, on_epoch=True)
                return loss

            def on_train_epoch_end(self):
                self.means = [*getattr(self, "means", []), float(self.trainer.callback_metrics["loss_epoch"])]

            def configure_optimizers(self):
                opt = optimizer_of(self, adam)
                self.seen = rates_used(opt)
                if schedule is None:
                    return opt
                scheduler = LambdaLR(opt, lambda step: 1 - step / 8) if schedule == "linear" else schedule(opt)
                return {"optimizer": opt, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        callback = CriticalWarmupCallback(6)
        ours = ([GIAdamCallback()] if adam else []) + [callback]
        trainer = lightning.Trainer(
            **{
                "max_steps": steps,
                "accelerator": "cpu",
                "accumulate_grad_batches": accumulate,
                "gradient_clip_val": 0.5,
                "callbacks": ours if callbacks is None else callbacks(ours),
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            }
            | settings
        )
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*BATCH), batch_size=batch)
        return trainer, Model(), data, callback

    @pytest.mark.parametrize(("adam", "accumulate"), [(False, 1), (True, 1), (False, 3)])
    def test_a_run(self, adam, accumulate):
        trainer, model, data, callback = self.go(adam=adam, accumulate=accumulate)
        trainer.fit(model, data)
        wanted = by_hand(adam, accumulate, 0.5, warmup_worker.build)
        assert callback.found.learning_rate == pytest.approx(wanted.learning_rate, rel=1e-6)
        target = 10.0 if adam else 30.0
        start = callback.found.initial / target
        assert 0 < start < 1
        assert model.seen == pytest.approx(
            [target * (1 - step / 8) * min(1, start + step / 6) for step in range(8)], rel=1e-9
        )

    def test_without_a_scheduler_and_nothing_of_the_search_is_logged(self):
        trainer, model, data, callback = self.go(schedule=None)
        trainer.fit(model, data)
        start = callback.found.initial / 30
        assert model.seen == pytest.approx([30 * min(1, start + step / 6) for step in range(8)], rel=1e-9)
        plain, other, data, _ = self.go(schedule=None, steps=3, callbacks=lambda ours: [])
        plain.fit(other, data)
        with torch.no_grad():
            first = LOSS(warmup_worker.build()(BATCH[0][:4]), BATCH[1][:4])
        assert "log" not in model.__dict__
        assert len(model.means) == 3
        assert model.means[0] != other.means[0], "the first epoch takes smaller steps"
        assert float(first) == pytest.approx(callback.found.loss, rel=1e-12)

    def test_a_recorder_after_it_records_the_rates_that_were_used(self, tmp_path):
        pytest.importorskip("lightning")
        from thalweg.runs.callbacks_lightning import TrajectoryCallback

        recorder = TrajectoryCallback(tmp_path / "run", every=4)
        trainer, model, data, _ = self.go(callbacks=lambda ours: [*ours, recorder])
        trainer.fit(model, data)
        assert open_run(tmp_path / "run").data.learning_rate.values.tolist()[:8] == pytest.approx(model.seen, rel=1e-9)

    def test_it_resumes(self, tmp_path):
        options = {"schedule": lambda opt: CosineAnnealingLR(opt, 20), "batch": 12}  # an epoch is one step
        trainer, whole, data, _ = self.go(**options)
        trainer.fit(whole, data)
        trainer, first, data, _ = self.go(**options, steps=3)
        trainer.fit(first, data)
        trainer.save_checkpoint(tmp_path / "own.ckpt")
        trainer, rest, data, again = self.go(**options)
        trainer.fit(rest, data, ckpt_path=tmp_path / "own.ckpt")
        assert first.seen + rest.seen == pytest.approx(whole.seen, rel=1e-12)
        assert again.found is None
        for one, other in zip(whole.parameters(), rest.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)

    def test_what_it_does_not_combine_with(self, tmp_path):
        trainer, model, data, _ = self.go(schedule=lambda opt: LinearLR(opt, 0.1))
        with pytest.raises(InvalidInput, match="warm-up of its own"):
            trainer.fit(model, data)
        trainer, model, data, _ = self.go(adam=True, callbacks=lambda ours: ours[::-1])
        with pytest.raises(InvalidInput, match="List GIAdamCallback before"):
            trainer.fit(model, data)
        trainer, model, data, _ = self.go(gradient_clip_val=None)
        model.automatic_optimization = False
        with pytest.raises(InvalidInput, match="by hand"):
            trainer.fit(model, data)
        trainer, model, data, _ = self.go(callbacks=lambda ours: [], steps=3)
        trainer.fit(model, data)
        trainer.save_checkpoint(tmp_path / "own.ckpt")
        trainer, model, data, callback = self.go()
        with pytest.warns(ThalwegWarning, match="without a warm-up: none is done"):
            trainer.fit(model, data, ckpt_path=tmp_path / "own.ckpt")
        assert callback.ramp is None
