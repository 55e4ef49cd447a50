"""A small network on handwritten digits, trained by Lightning's Trainer and recorded by a callback.

python examples/recorder_lightning.py [FOLDER]
"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits

import thalweg as tw
from thalweg.runs.callbacks_lightning import TrajectoryCallback
from thalweg.runs.sources import trajectory


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU())
        self.head = torch.nn.Linear(32, 10)

    def training_step(self, batch, number):
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(self.head(self.net(inputs)), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder: str = "runs/recorder-lightning", steps: int = 120) -> None:
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    data = torch.utils.data.TensorDataset(
        torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[TrajectoryCallback(folder, every=20, replace=True)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))

    run = tw.open_run(folder)
    print(run)
    print("loss", *(f"{value:.3f}" for value in run.data.loss.values[[0, 40, 80, steps - 1]]))
    print("checkpoints at", *trajectory(folder).steps)


if __name__ == "__main__":
    main(*sys.argv[1:2])
