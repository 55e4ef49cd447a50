"""The two callbacks against what their Trainers did: steps, losses, rates, gradients, resuming, errors."""

import pickle

import numpy as np
import pytest
import torch

from thalweg.runs import open_run
from thalweg.runs.joined import Joined

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS @ torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


class Mapping(Joined):
    def __init__(self, value):
        super().__init__()
        self.value = value

    @staticmethod
    def base():
        return dict


class Child(Mapping):
    pass


def test_joined_objects_are_of_both_classes():
    for kind in (Mapping, Child):
        made = kind(3)
        assert isinstance(made, dict)
        assert isinstance(made, kind)
        assert made.value == 3
        again = pickle.loads(pickle.dumps(made))
        assert isinstance(again, kind)
        assert again.value == 3
    assert type(Mapping(1)) is type(Mapping(2))
    assert type(Child(1)) is not type(Mapping(1))


def seen_by(optimizer):
    """Note the learning rate and the gradient norm of every step that an optimizer does."""
    seen = []

    def look(optimizer, arguments, settings):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append((optimizer.param_groups[0]["lr"], float(torch.nn.utils.get_total_norm(gradients))))

    optimizer.register_step_post_hook(look)
    return seen


def check_rows(folder, seen):
    data = open_run(folder).data
    np.testing.assert_allclose(data.learning_rate.dropna("step").values, [rate for rate, _ in seen], rtol=1e-12)
    norms = data.gradient_norm.dropna("step")
    np.testing.assert_allclose(norms.values, [seen[step][1] for step in norms.step.values], rtol=1e-5)
    return norms.step.values.tolist()


@pytest.mark.slow
class TestTransformers:
    def go(self, folder, own, model, steps=7, **settings):
        transformers = pytest.importorskip("transformers")
        from thalweg.runs.callbacks_transformers import TrajectoryCallback

        arguments = transformers.TrainingArguments(
            output_dir=str(own),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=0.5,
            learning_rate=0.05,
            logging_steps=1,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        data = [{"inputs": x, "labels": y} for x, y in zip(INPUTS, LABELS)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        callback = TrajectoryCallback(folder, **{"every": 2} | settings)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=data, callbacks=[callback], optimizers=(optimizer, None)
        )
        return trainer, seen_by(optimizer)

    def make(self):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(6, 2)

            def forward(self, inputs, labels=None):
                out = self.net(inputs)
                return {"loss": (out - labels).square().mean(), "logits": out}

        torch.manual_seed(0)
        return Model()

    def test_a_run_and_its_continuation(self, tmp_path):
        model = self.make()
        first = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer, seen = self.go(tmp_path / "run", tmp_path / "own", model)
        result = trainer.train()
        run = open_run(tmp_path / "run")
        assert run.checkpoints == [0, 2, 4, 6, 7]
        assert run.state == "finished"
        assert torch.equal(run.checkpoint(0)["net.weight"], first["net.weight"])
        assert torch.equal(run.checkpoint(7)["net.weight"], model.net.weight)
        assert check_rows(tmp_path / "run", seen) == [0, 2, 4, 6]
        assert np.mean(run.data.loss.dropna("step").values) == pytest.approx(result.training_loss, rel=1e-3)
        assert run.manifest.rule.startswith("SGD")

        model = self.make()
        again, seen_again = self.go(tmp_path / "run", tmp_path / "own", model, steps=9)
        again.train(resume_from_checkpoint=str(tmp_path / "own" / "checkpoint-4"))
        run = open_run(tmp_path / "run")
        assert run.checkpoints == [0, 2, 4, 6, 8, 9]
        assert len(seen_again) == 5
        assert [entry["step"] for entry in run.manifest.resumed] == [4]
        assert torch.equal(run.checkpoint(9)["net.weight"], model.net.weight)


@pytest.mark.slow
class TestLightning:
    def go(self, folder, steps=7, fail_at=None, **settings):
        lightning = pytest.importorskip("lightning")
        from thalweg.runs.callbacks_lightning import TrajectoryCallback

        class Model(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(6, 2)
                self.losses = []

            def training_step(self, batch, number):
                if number == fail_at:
                    raise ZeroDivisionError("on purpose")
                loss = (self.net(batch[0]) - batch[1]).square().mean()
                self.losses.append(loss.item())
                return loss

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
                self.seen = seen_by(optimizer)
                schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        torch.manual_seed(0)
        model = Model()
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            accumulate_grad_batches=settings.pop("accumulate", 1),
            callbacks=[TrajectoryCallback(folder, **{"every": 2} | settings)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, LABELS), batch_size=3)
        return trainer, model, data

    def test_a_run_and_its_continuation(self, tmp_path):
        trainer, model, data = self.go(tmp_path / "run")
        first = model.net.weight.detach().clone()
        trainer.fit(model, data)
        run = open_run(tmp_path / "run")
        assert run.checkpoints == [0, 2, 4, 6, 7]
        assert run.state == "finished"
        assert torch.equal(run.checkpoint(0)["net.weight"], first)
        assert torch.equal(run.checkpoint(7)["net.weight"], model.net.weight)
        np.testing.assert_allclose(run.data.loss.dropna("step").values, model.losses, rtol=1e-6)
        assert check_rows(tmp_path / "run", model.seen) == [0, 2, 4, 6]

        trainer.save_checkpoint(tmp_path / "own.ckpt")
        trainer, model, data = self.go(tmp_path / "run", steps=10)
        trainer.fit(model, data, ckpt_path=tmp_path / "own.ckpt")
        run = open_run(tmp_path / "run")
        assert run.checkpoints == [0, 2, 4, 6, 7, 8, 10]
        assert run.data.loss.dropna("step").step.values.tolist() == list(range(10))

    def test_accumulated_batches_are_one_step(self, tmp_path):
        trainer, model, data = self.go(tmp_path, steps=4, accumulate=2)
        trainer.fit(model, data)
        run = open_run(tmp_path)
        assert run.checkpoints == [0, 2, 4]
        assert len(model.losses) == 8
        assert check_rows(tmp_path, model.seen) == [0, 2]

    def test_an_error_in_training(self, tmp_path):
        trainer, model, data = self.go(tmp_path, fail_at=5)
        with pytest.raises(ZeroDivisionError):
            trainer.fit(model, data)
        run = open_run(tmp_path)
        assert (run.state, run.manifest.error) == ("failed", "ZeroDivisionError: on purpose")
        assert run.checkpoints == [0, 2, 4]
