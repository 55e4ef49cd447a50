"""A tiny GPT-2 on the text of the standard library, trained by transformers' Trainer and recorded by a callback.

python examples/recorder_transformers.py [FOLDER]
"""

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import thalweg as tw
from thalweg.runs.callbacks_transformers import TrajectoryCallback
from thalweg.runs.sources import trajectory

LENGTH = 32


def text() -> torch.Tensor:
    """The bytes of two modules, in rows of LENGTH."""
    source = b"".join(Path(module.__file__).read_bytes() for module in (argparse, textwrap))
    return torch.tensor(list(source[: len(source) // LENGTH * LENGTH])).reshape(-1, LENGTH)


def main(folder: str = "runs/recorder-transformers", steps: int = 40) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as own:
        arguments = TrainingArguments(
            output_dir=own,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in text()]
        callback = TrajectoryCallback(folder, every=10, schedule="log", replace=True)
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback]).train()

    run = tw.open_run(folder)
    print(run)
    loss = run.data.loss.dropna("step")
    print("loss", *(f"{step}: {value:.3f}" for step, value in zip(loss.step.values, loss.values)))
    print("checkpoints at", *trajectory(folder).steps)


if __name__ == "__main__":
    main(*sys.argv[1:2])
