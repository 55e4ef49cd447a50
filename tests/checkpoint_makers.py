"""Checkpoints as other people save them: small, made on the spot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HEADS = 4


def neox(folder: Path, steps, *, layers=2, width=16, shard="8KB", dtype=torch.float16, names="step{}", scale=1e-3):
    """Save a random walk of a tiny GPT-NeoX, a folder of shards per step; return what was saved by step.

    Args:
        folder: Where.
        steps: Their steps.
        layers: Depth.
        width: Width; four heads.
        shard: Largest shard, as transformers takes it.
        dtype: Of the files.
        names: How folders are named.
        scale: Size of one update.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        vocab_size=97,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = transformers.GPTNeoXForCausalLM(config).to(dtype)
    saved = {}
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
        model.save_pretrained(folder / names.format(step), max_shard_size=shard)
        saved[step] = {
            n: t for f in (folder / names.format(step)).glob("*.safetensors") for n, t in load_file(f).items()
        }
    return saved


def as_bins(folder: Path) -> None:
    """Turn the safetensors shards of a folder into ``pytorch_model-*.bin`` with their index, masks and all."""
    listed = {}
    files = sorted(folder.glob("*.safetensors"))
    for number, path in enumerate(files, 1):
        tensors = load_file(path)
        if number == 1:
            tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
            tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
        name = f"pytorch_model-{number:05d}-of-{len(files):05d}.bin"
        torch.save(tensors, folder / name)
        listed |= dict.fromkeys(tensors, name)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def as_cache(folder: Path, cache: Path) -> Path:
    """Lay folders of steps out as the hub's cache does: blobs, links to them in snapshots, revisions in refs."""
    root = cache / "models--someone--tiny"
    for number, place in enumerate(sorted(folder.iterdir())):
        commit = f"{number:040x}"
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (root / "blobs").mkdir(exist_ok=True)
        for path in place.iterdir():
            blob = root / "blobs" / f"{place.name}-{path.name}"
            shutil.copyfile(path, blob)
            (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
        ref = root / "refs" / place.name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return root
