"""A tiny GPT-2 on the text of the standard library, whose warm-up begins at the critical learning rate.

python examples/warmup_transformers.py
"""

import argparse
import tempfile
import textwrap
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from thalweg.runs.callbacks_warmup_transformers import CriticalWarmupCallback

LENGTH = 32


def text() -> torch.Tensor:
    """The bytes of two modules, in rows of LENGTH."""
    source = b"".join(Path(module.__file__).read_bytes() for module in (argparse, textwrap))
    return torch.tensor(list(source[: len(source) // LENGTH * LENGTH])).reshape(-1, LENGTH)


def main(steps: int = 40, warmup: int = 20) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    callback = CriticalWarmupCallback(warmup)
    with tempfile.TemporaryDirectory() as own:
        arguments = TrainingArguments(
            output_dir=own,
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",  # a factor of which the warm-up is; its own has 0 steps
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in text()]
        trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
        trainer.train()

    print(callback.found)
    print(f"the target is reached after {callback.ramp.length} steps instead of {warmup}")
    told = [(log["learning_rate"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
    for step in range(0, steps, 8):
        print("step {:3}: learning rate {:.2e}, loss {:.3f}".format(step, *told[step]))
    return told


if __name__ == "__main__":
    main()
