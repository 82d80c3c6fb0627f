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
import numpy.typing as npt

from models import manifest
from models.copywriter import END, GRAPH, TOKENIZER, Copywriter, Facts, guard, prompt
from models.train.shoptext import TOPICS, Sample, samples

LAYERS, WIDTH, HEADS, POSITIONS, VOCABULARY = 4, 256, 4, 96, 4000
Array = npt.NDArray[Any]


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


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def const(self, name: str, value: Any) -> str:
        self.weights.setdefault(name, self._numpy.from_array(np.array(value, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        made = [name or f"{kind}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(self.helper.make_node(kind, list(inputs), made, **attributes))
        return made[0] if outputs == 1 else made

    def linear(self, x: str, weight: Array, name: str, bias: Array | None = None) -> str:
        """x (N, K) float32 times weight (K, M) in int8: a scale for each row of x, one for each column of the weight.

        A scale for the whole of x, as DynamicQuantizeMatMul has it, would let one sample change another. Seven bits, for
        eight overflow the 16-bit sums of AVX2.
        """
        scale = np.maximum(np.abs(weight).max(0), 1e-12) / 63
        quantised = np.rint(weight / scale).astype(np.int8)
        peak = self.op("ReduceMax", self.op("Abs", x), self.const("one", np.array([1])), keepdims=0)
        step = self.op("Mul", peak, self.const("1/127", np.float32(1 / 127)))
        from onnx import TensorProto

        zero = self.op(
            "ConstantOfShape", self.op("Shape", step), value=self._numpy.from_array(np.array([128], np.uint8), "zero")
        )
        small = self.op("QuantizeLinear", x, step, zero, axis=0)
        product = self.op("MatMulInteger", small, self.const(name + ".q", quantised), self.const("u128", np.uint8(128)))
        y = self.op("Cast", product, to=TensorProto.FLOAT)
        y = self.op("Mul", y, self.op("Unsqueeze", step, self.const("one", np.array([1]))))
        y = self.op("Mul", y, self.const(name + ".s", scale.astype(np.float32)))
        return str(self.op("Add", y, self.const(name + ".b", bias)) if bias is not None else y)


def build(weights: dict[str, Array]) -> bytes:
    """GPT-2 as ONNX: ids (B, S) int64, past (2 L, B, H, P, D) -> logits (B, V) of the last position, present.

    weights: the state of `transformers.GPT2LMHeadModel`, float32.
    """
    from onnx import TensorProto, checker

    g = Graph()
    h = g.helper
    depth = WIDTH // HEADS

    def w(name: str) -> Array:
        return weights["transformer." + name]

    def ints(name: str, *values: int) -> str:
        return g.const(name, np.array(values, np.int64))

    last, minus = ints("axis-1", -1), ints("-1", -1)
    flat = ints("flat", -1, WIDTH)
    shape = g.op("Shape", "ids")
    size = g.op("Gather", shape, g.const("i1", np.array(1)))
    before = g.op("Gather", g.op("Shape", "past"), g.const("i3", np.array(3)))
    total = g.op("Add", before, size)
    query = g.op("Range", before, total, g.const("step", np.array(1)))
    key = g.op("Range", g.const("i0", np.array(0)), total, "step")
    future = g.op("Less", g.op("Unsqueeze", query, ints("a1", 1)), g.op("Unsqueeze", key, ints("a0", 0)))  # (S, T)
    mask = g.op("Where", future, g.const("-1e9", np.float32(-1e9)), g.const("0", np.float32(0)))
    # The embedding is the head's own int8 columns: they are four fifths of a small model.
    head = w("wte.weight").T
    scale = np.maximum(np.abs(head).max(0), 1e-12) / 63
    columns = g.op("Gather", g.const("head.q", np.rint(head / scale).astype(np.int8)), "ids", axis=1)
    embedded = g.op("Transpose", g.op("Cast", columns, to=TensorProto.FLOAT), perm=[1, 2, 0])
    factor = g.op("Unsqueeze", g.op("Gather", g.const("head.s", scale.astype(np.float32)), "ids"), last)
    placed = g.op("Gather", g.const("wpe", w("wpe.weight")), query)
    x = g.op("Reshape", g.op("Add", g.op("Mul", embedded, factor), placed), flat)  # (B S, E)
    apart = g.op("Concat", shape, ints("heads", HEADS, depth), axis=0)
    together = g.op("Concat", shape, minus, axis=0)
    present = []

    def norm(y: str, name: str) -> str:
        return str(
            g.op(
                "LayerNormalization",
                y,
                g.const(name + ".g", w(name + ".weight")),
                g.const(name + ".b", w(name + ".bias")),
                epsilon=1e-5,
            )
        )

    for layer in range(LAYERS):
        at = f"h.{layer}."
        qkv = g.linear(norm(x, at + "ln_1"), w(at + "attn.c_attn.weight"), at + "qkv", w(at + "attn.c_attn.bias"))
        parts = g.op("Split", g.op("Reshape", qkv, together), outputs=3, axis=-1, num_outputs=3)
        q, k, v = (g.op("Transpose", g.op("Reshape", part, apart), perm=[0, 2, 1, 3]) for part in parts)
        grown = []
        for plane, new in ((2 * layer, k), (2 * layer + 1, v)):
            old = g.op("Gather", "past", g.const(f"plane{plane}", np.array(plane)), axis=0)
            grown.append(g.op("Concat", old, new, axis=2))
            present.append(g.op("Unsqueeze", grown[-1], ints("a0", 0)))
        scores = g.op(
            "MatMul",
            g.op("Mul", q, g.const("scale", np.float32(depth**-0.5))),
            g.op("Transpose", grown[0], perm=[0, 1, 3, 2]),
        )
        share = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        mixed = g.op("Reshape", g.op("Transpose", g.op("MatMul", share, grown[1]), perm=[0, 2, 1, 3]), flat)
        x = g.op("Add", x, g.linear(mixed, w(at + "attn.c_proj.weight"), at + "proj", w(at + "attn.c_proj.bias")))
        inner = g.linear(norm(x, at + "ln_2"), w(at + "mlp.c_fc.weight"), at + "fc", w(at + "mlp.c_fc.bias"))
        inner = g.op("Gelu", inner, approximate="tanh")
        x = g.op("Add", x, g.linear(inner, w(at + "mlp.c_proj.weight"), at + "out", w(at + "mlp.c_proj.bias")))
    ends = g.op("Gather", g.op("Reshape", norm(x, "ln_f"), together), g.const("last", np.array(-1)), axis=1)  # (B, E)
    logits = g.linear(ends, head, "head")
    g.op("Identity", logits, name="logits")
    g.op("Concat", *present, name="present", axis=0)
    cache = ["planes", "B", HEADS, "P", depth]
    graph = h.make_graph(
        g.nodes, "gpt2",
        [h.make_tensor_value_info("ids", TensorProto.INT64, ["B", "S"]), h.make_tensor_value_info("past", TensorProto.FLOAT, cache)],
        [h.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "V"]),
         h.make_tensor_value_info("present", TensorProto.FLOAT, ["planes", "B", HEADS, "T", depth])],
        list(g.weights.values()),
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


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
    (out / GRAPH).write_bytes(build(weights))
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
