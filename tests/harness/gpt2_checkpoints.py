"""Small GPT-2s with random weights, in memory and as the folders that Hugging Face keeps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deploy.bench.models import random_weights

CONFIG: dict[str, Any] = {
    "model_type": "gpt2", "n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 80, "vocab_size": 311,
}  # fmt: skip
SENTENCES = ("Based on your interest in kitchen, we recommend", "lamps for the table.", "good pots and pans!\n")


def weights_of(config: dict[str, Any], seed: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Ten times as large as before training, so that attention attends and texts differ."""
    return {name: value if "ln_" in name else 10 * value for name, value in random_weights(config, seed).items()}


def save(
    folder: Path, *, prefix: str = "transformer.", shards: int = 1, kind: type = np.float32, **options: Any
) -> Path:
    """A checkpoint without a tokenizer; options of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | options
    (folder / "config.json").write_text(json.dumps(config))
    weights: dict[str, npt.NDArray[Any]] = {
        prefix + name: value.astype(kind) for name, value in weights_of(config).items()
    }
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    places: dict[str, str] = {}
    for at in range(shards):
        part = dict(list(weights.items())[at::shards])
        file = f"model-{at + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def byte_level() -> Tokenizer:
    """The byte-level BPE of GPT-2, of 311 tokens at most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def word_piece(folder: Path) -> None:
    """vocab.txt as a Chinese GPT-2 has it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *"基于你对的兴趣我们推荐以下商品厨具，。：", "kitchen", "lamp", "##s", "for", "you", "|", "_"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
