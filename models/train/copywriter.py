"""Train the small GPT-2 that writes headlines, and export it to ONNX with int8 weights.

python -m models.train.copywriter --out models/default/copywriter --minutes 12
"""

import argparse
import sys
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from models import manifest
from models.copywriter import END, GRAPH, TOKENIZER, Copywriter, Facts, guard, prompt
from models.gpt2_graph import build_graph
from models.train.shoptext import TOPICS, Sample, samples

LAYERS, WIDTH, HEADS, POSITIONS, VOCABULARY = 4, 256, 4, 96, 4000


def topic_of(sample: Sample) -> str:
    if not sample.category:
        return ""
    topic = TOPICS[sample.category]
    return topic.en[0] if sample.locale == "en" else topic.zh[0]


def names() -> dict[str, dict[str, list[str]]]:
    return {
        "en": {category: list(topic.en) for category, topic in TOPICS.items()},
        "zh": {category: list(topic.zh) for category, topic in TOPICS.items()},
    }


def train(out: Path, minutes: float, seed: int) -> None:
    """Train, export and evaluate; progress on stderr."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = list(islice(samples(seed), 120_000))
    known = set(corpus)
    held = [s for s in dict.fromkeys(islice(samples(seed + 1), 20_000)) if s not in known][:600]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (text for s in corpus[:40_000] for text in (prompt(s.locale, s.slot, topic_of(s)), s.headline))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out / TOKENIZER))
    end = int(tokenizer.token_to_id(END) or 0)
    size = tokenizer.get_vocab_size()

    def batch(part: list[Sample]) -> tuple[Any, Any]:
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        for s in part:
            start = tokenizer.encode(prompt(s.locale, s.slot, topic_of(s))).ids
            rest = [*tokenizer.encode(" " + s.headline if s.locale == "en" else s.headline).ids, end]
            ids.append(start + rest)
            labels.append([-100] * len(start) + rest)
        longest = min(POSITIONS, max(map(len, ids)))
        padded = [(i + [end] * longest)[:longest] for i in ids]
        aims = [(i + [-100] * longest)[:longest] for i in labels]
        return torch.tensor(padded), torch.tensor(aims)

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.05,
            embd_pdrop=0.05, attn_pdrop=0.05, bos_token_id=end, eos_token_id=end,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    start, steps, at = time.monotonic(), 0, 0
    shown = 0.0
    model.train()
    while (spent := time.monotonic() - start) < minutes * 60:
        rate = 1e-3 * min(1.0, (steps + 1) / 100) * max(0.02, 1 - spent / (minutes * 60))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids, labels = batch([corpus[(at + k) % len(corpus)] for k in range(48)])
        at += 48
        loss = model(ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps += 1
        if spent - shown > 15:
            shown = spent
            print(
                f"{spent / 60:5.1f} of {minutes:g} min  step {steps}  loss {loss.item():.3f}",
                file=sys.stderr,
                flush=True,
            )
    model.eval()
    losses = []
    with torch.no_grad():
        for k in range(0, len(held), 50):
            ids, labels = batch(held[k : k + 50])
            losses.append(model(ids, labels=labels).loss.item())
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    (out / GRAPH).write_bytes(build_graph(model.config.to_dict(), weights))
    describe(out, {"held_out_nll": float(np.mean(losses)), "steps": float(steps), "minutes": minutes}, size, seed)


def describe(out: Path, metrics: dict[str, float], vocabulary: int, seed: int) -> None:
    """Write the manifest, with what share of headlines is good, by language."""
    params = {
        "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": POSITIONS, "vocabulary": vocabulary, "names": names(),
    }  # fmt: skip

    def write(found: dict[str, float]) -> None:
        manifest.write(
            out, name="headlines", kind="copywriter", created=datetime.now(UTC).isoformat(timespec="seconds"),
            data=f"invented headlines in English and Chinese (models/train/shoptext.py, seed {seed})", metrics=found, params=params,
        )  # fmt: skip

    write(metrics)
    writer = Copywriter(out, samples=1)
    start, asked = time.monotonic(), 0
    for locale in ("en", "zh"):
        good = 0
        facts = [Facts(locale, slot, category) for slot in ("for_you", "because_you_viewed") for category in TOPICS]
        for seed_ in range(2):
            for fact, copy in zip(facts, writer.write(facts, seed_), strict=True):
                good += copy is not None and guard(copy.text, fact, writer.names[locale]) is None
                asked += 1
        metrics[f"passes_guard_{locale}"] = good / (2 * len(facts))
    metrics["headlines_per_second"] = asked / (time.monotonic() - start)
    write(metrics)
    for fact in (
        Facts("en", "for_you", "kitchen"),
        Facts("zh", "for_you", "lighting"),
        Facts("en", "trending", ""),
        Facts("zh", "fresh", ""),
    ):
        print(fact[:3], writer.write([fact], 7)[0], file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.train.copywriter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, made where it is missing")
    parser.add_argument("--minutes", type=float, default=12.0, help="time to train (default 12)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    try:
        train(given.out, given.minutes, given.seed)
    except ImportError as error:
        print(f"shopwindow: {error.name} is not installed; run make setup-train", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
