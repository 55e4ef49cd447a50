"""A small network on handwritten digits, trained by Lightning: its warm-up begins at the critical learning rate.

python examples/warmup_lightning.py
"""

import lightning
import torch
from sklearn.datasets import load_digits

from thalweg.runs.callbacks_warmup_lightning import CriticalWarmupCallback


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        for layer in (self.net[0], self.net[2]):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.told: list[tuple[float, float]] = []

    def training_step(self, batch, number):
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(self.net(inputs), labels)

    def on_before_optimizer_step(self, optimizer):
        self.rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, outputs, batch, number):
        self.told.append((self.rate, float(outputs["loss"])))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.04, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(steps: int = 120, warmup: int = 40) -> list[tuple[float, float]]:
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    data = torch.utils.data.TensorDataset(torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target))
    callback = CriticalWarmupCallback(warmup)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Digits()
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))

    print(callback.found)
    print(f"the target is reached after {callback.ramp.length} steps instead of {warmup}")
    for step in range(0, steps, 24):
        print("step {:3}: learning rate {:.2e}, loss {:.3f}".format(step, *model.told[step]))
    return model.told


if __name__ == "__main__":
    main()
