"""A plain loop on handwritten digits, recorded: every 20th checkpoint, and 8 steps in a row each 100 as projections.

python examples/recorder_plain.py [FOLDER]
"""

import sys

import torch
from sklearn.datasets import load_digits

import thalweg as tw
from thalweg.runs.recorder import Recorder
from thalweg.runs.sources import trajectory


def main(folder: str = "runs/recorder-plain", steps: int = 300) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    with Recorder(folder, model, optimizer, every=20, bursts=(8, 100), steps=steps, replace=True) as recorder:
        print(f"at most {recorder.prediction()}")
        for _ in range(steps):
            batch = torch.randint(len(inputs), (64,))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            recorder.step(loss=loss)  # before the scheduler, so that the learning rate is that of this update
            schedule.step()

    run = tw.open_run(folder)
    print(run)
    print("loss", *(f"{value:.3f}" for value in run.data.loss.values[[0, 100, 200, steps - 1]]))
    path = trajectory(folder)
    print(f"{len(path)} checkpoints of {sum(info.numel for info in path.tensors):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:2])
