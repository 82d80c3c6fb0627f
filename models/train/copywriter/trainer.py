"""Train the small GPT-2 that writes headlines, and export it to ONNX.

It is pre-trained on shop texts, then fine-tuned on pairs of facts and headline. checkpoint/ holds the weights in the
format of `transformers`. A training that is stopped, by Ctrl-C or kill, resumes and ends with the same weights.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models import manifest, parity
from models.copywriter.checkpoint import build
from models.copywriter.facts import LOCALES
from models.copywriter.model import GRAPH, TOKENIZER
from models.copywriter.prompt import END, ITEMS, TOPIC, format_prompt, prefix
from models.train.copywriter import evaluation
from models.train.copywriter.corpus import SLOTS, Pair, lexicon_params, pairs, render, shapes, texts, topics
from models.train.progress import LogLine
from models.train.recipe import make_recipe, with_environment

LAYERS, WIDTH, HEADS, POSITIONS = 4, 256, 4, 96
VOCABULARY, VOCABULARY_TEXTS = 6000, 40_000
CHINESE_WORDS = 1500  # maximum number of tokens of more than one Chinese character
PRETRAINING, FINE_TUNING = 300, 4000  # steps: 30 to 50 minutes of one core
WINDOWS, WINDOW = 12, 64  # windows in a step of pre-training, and their length in tokens
PAIRS = 24  # pairs of each language in a step of fine-tuning
CHUNK = 24  # pairs of similar length that are computed together
LEARNING_RATE, WARM_UP_STEPS = 1.8e-3, 100
SAVE_SECONDS, REPORT_SECONDS = 60.0, 15.0
RECIPE_SAMPLES = 30  # steps that the recipe samples, and lines of each
HELD_OUT = 400  # pairs of each group for the perplexity
MAX_LOGPROB_ERROR = 0.5  # nats by which int8 may change the log-probability of an unlikely token
STATE = "training.safetensors"
LIMITS = [
    "Headlines of a shop's homepage in English and Chinese, up to 96 characters; no other texts and no other language.",
    "It knows the topics of models/train/copywriter/topics.txt; other interests are named, not described.",
    "Its sentences follow the shapes that it has read; it has no knowledge of the items but their names.",
    "A name of an item is shown as the shop gave it where the guard lets it pass: the guard knows "
    "claims, not falsehoods.",
]


class Plan(NamedTuple):
    """The parameters of a training: the same plan gives the same weights."""

    seed: int
    pretraining: int = PRETRAINING  # steps
    fine_tuning: int = FINE_TUNING

    @property
    def steps(self) -> int:
        return self.pretraining + self.fine_tuning


def train(out: Path, plan: Plan, say: LogLine) -> manifest.Manifest:
    """Train to the end of the plan, export, evaluate and write the manifest. Resume what an earlier run left in `out`.

    Raises ValueError if `out` holds an unfinished training of another plan, ImportError without torch.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    torch.set_num_threads(1)  # sums in another order would change the weights
    torch.manual_seed(plan.seed)
    if not (checkpoint / TOKENIZER).exists():
        _write_atomically(checkpoint / TOKENIZER, lambda path: build_tokenizer(plan.seed).save(str(path)))
    tokenizer = Tokenizer.from_file(str(checkpoint / TOKENIZER))
    model = _model(tokenizer)
    _run(model, tokenizer, plan, checkpoint / STATE, say)
    model.eval()
    model.save_pretrained(checkpoint)
    shutil.copyfile(checkpoint / TOKENIZER, out / TOKENIZER)
    (out / GRAPH).write_bytes(build(checkpoint))
    _write_parity_case(out, model, tokenizer)
    found = perplexities(model, tokenizer)
    describe = partial(
        manifest.write,
        out,
        name="headlines",
        kind="copywriter",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=f"generated text of shops in English and Chinese (models/train/copywriter/corpus.py, seed {plan.seed}): "
        f"{plan.pretraining * WINDOWS * WINDOW} tokens to begin with, then {plan.fine_tuning * 2 * PAIRS} "
        f"pairs of facts "
        "and headline; nobody's copy and nobody's data",
        limits=" ".join(LIMITS),
        params={
            "n_layer": LAYERS,
            "n_embd": WIDTH,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "vocabulary": tokenizer.get_vocab_size(),
            **lexicon_params(),
            "plan": plan._asdict(),
        },
        recipe=with_environment({**recipe_of_texts(plan), "first_losses": first_losses(tokenizer, plan)}),
    )
    describe(metrics=found)  # the evaluation reads the folder as serving does
    written = describe(metrics=found | evaluation.figures(out, say))
    (checkpoint / STATE).unlink()
    return written


def recipe_of_texts(plan: Plan) -> dict[str, Any]:
    """Return the ingredients of the recipe: the texts of a sample of steps."""
    lines: list[str] = []
    for step in range(0, plan.steps, max(1, plan.steps // RECIPE_SAMPLES)):
        lines += islice(texts(_step_seed(plan.seed, step)), RECIPE_SAMPLES)
        for at, locale in enumerate(LOCALES):
            slot = SLOTS[(step + 3 * at) % len(SLOTS)]
            for pair in islice(pairs(_step_seed(plan.seed, step), only=(locale, slot)), RECIPE_SAMPLES):
                lines += [format_prompt(locale, slot, pair.topic, pair.items), pair.headline]
    shape = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": POSITIONS}
    return make_recipe({**plan._asdict(), **shape}, (line.encode() for line in lines))


def first_losses(tokenizer: Tokenizer, plan: Plan) -> list[float]:
    """Return the losses of two steps of pre-training and two of fine-tuning from scratch, in nats per token."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    model = _model(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    for learn in (_pretrain_step, _pretrain_step, _fine_tune_step, _fine_tune_step):
        optimiser.zero_grad()
        losses.append(round(learn(model, tokenizer, plan.seed, len(losses)), 5))
        optimiser.step()
    return losses


def _write_parity_case(out: Path, model: Any, tokenizer: Tokenizer) -> None:
    """Write the reference of the parity test: float32 log-probabilities of texts after a prompt."""
    import torch

    prompt = tokenizer.encode(format_prompt("en", "for_you", "lamps", 1)).ids
    texts = np.random.default_rng(1).integers(1, tokenizer.get_vocab_size(), (4, 6))
    with torch.no_grad():
        whole = torch.tensor([[*prompt, *text] for text in texts.tolist()])
        logs = model(whole).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
        logprob = logs.gather(2, torch.from_numpy(texts)[..., None])[..., 0].numpy()
    parity.write_logprobs(out, np.array(prompt), texts, logprob, MAX_LOGPROB_ERROR)


def build_tokenizer(seed: int) -> Tokenizer:
    """Return a byte-level BPE of the corpus. Chinese tokens are whole characters; each placeholder is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(r"[^\x00-\x7f]")
    tokenizer.decoder = decoders.ByteLevel()
    words = [" ".join(part) for of in topics()[0].values() for word in of.values() for part in word.parts]
    words += [shape.text for of_slot in shapes().values() for shape in of_slot]
    words += [format_prompt(locale, slot, "", len(ITEMS)) for locale in LOCALES for slot in SLOTS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator((*words * 40, *islice(texts(seed), VOCABULARY_TEXTS)), trainer)
    tokenizer = _with_chinese_words(tokenizer)
    # Not special: decoding must keep placeholders, which are filled afterwards.
    marks = (TOPIC, *ITEMS, *(f"<{slot}>" for slot in SLOTS))
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in marks])
    return tokenizer


def _pre_tokenizer(isolated: str) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(isolated), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _with_chinese_words(tokenizer: Tokenizer) -> Tokenizer:
    """Add tokens of several Chinese characters to a tokenizer of single characters.

    Characters are merged only within phrases of topics and shapes: in running text, merges would cross word boundaries.
    """
    phrases = Counter({word: 2 for of in topics()[0].values() for part in of["zh"].parts for word in part})
    phrases.update(re.findall(r"[\u3400-\u9fff]+", prefix("zh", "")) * 4)
    for (locale, _), of_slot in shapes().items():
        phrases.update(
            run for shape in of_slot if locale == "zh" for run in re.findall(r"[\u3400-\u9fff]+", shape.text)
        )
    sequences = [([token for c in phrase for token in tokenizer.encode(c).tokens], n) for phrase, n in phrases.items()]
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for _ in range(CHINESE_WORDS):
        found: Counter[tuple[str, str]] = Counter()
        for tokens, n in sequences:
            for pair in pairwise(tokens):
                found[pair] += n
        (first, second), n = min(found.items(), key=lambda of: (-of[1], of[0]))
        if n < 2:
            break
        vocabulary[first + second] = len(vocabulary)
        merges.append([first, second])
        sequences = [(_merged(tokens, first, second), n) for tokens, n in sequences]
    extended = Tokenizer.from_str(json.dumps(state))
    extended.pre_tokenizer = _pre_tokenizer(r"[\u3400-\u9fff]+|[^\x00-\x7f]")
    return extended


def _merged(tokens: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    for token in tokens:
        if merged and merged[-1] == first and token == second:
            merged[-1] = first + second
        else:
            merged.append(token)
    return merged


def _model(tokenizer: Tokenizer) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    end = _end(tokenizer)
    model = GPT2LMHeadModel(
        # No dropout: no text is read twice.
        GPT2Config(
            vocab_size=tokenizer.get_vocab_size(), n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
        )
    )  # fmt: skip
    model.loss_type = "ForCausalLM"  # the default, which transformers takes with a warning
    return model


def _run(model: Any, tokenizer: Tokenizer, plan: Plan, state: Path, say: LogLine) -> None:
    """Run all steps of the plan, or the remaining ones if `state` holds a stopped training."""
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    first = _resumed(model, optimiser, plan, state) if state.exists() else 0
    if first:
        say(f"copywriter: resumes after step {first:,} of {plan.steps:,}")
    started = saved = time.monotonic()
    reported = started - REPORT_SECONDS
    model.train()
    for step in range(first, plan.steps):
        optimiser.param_groups[0]["lr"] = (
            LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1.02 - step / plan.steps)
        )
        optimiser.zero_grad()
        if step < plan.pretraining:
            loss = _pretrain_step(model, tokenizer, plan.seed, step)
        else:
            loss = _fine_tune_step(model, tokenizer, plan.seed, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        now = time.monotonic()
        if now - reported > REPORT_SECONDS or step == plan.steps - 1:
            reported = now
            left = (now - started) / (step + 1 - first) * (plan.steps - step - 1)
            phase = "pre-training" if step < plan.pretraining else "fine-tuning"
            at = f"step {step + 1:,} of {plan.steps:,}"
            say(f"copywriter, {phase}, {at}: loss {loss:.3f} nats per token, {left / 60:.0f} min left")
        if now - saved > SAVE_SECONDS or step == plan.steps - 1:
            saved = now
            _save(model, optimiser, plan, step + 1, state)


def _pretrain_step(model: Any, tokenizer: Tokenizer, seed: int, step: int) -> float:
    """Compute the gradients of one step over texts, and return the loss in nats per token."""
    import torch

    end, room = _end(tokenizer), WINDOWS * WINDOW
    stream: list[int] = []
    for text in texts(_step_seed(seed, step)):
        stream += [*tokenizer.encode(text).ids, end]
        if len(stream) >= room:
            break
    ids = torch.tensor(stream[:room]).reshape(WINDOWS, WINDOW)
    loss = model(ids, labels=ids).loss
    loss.backward()
    return float(loss.item())


def _fine_tune_step(model: Any, tokenizer: Tokenizer, seed: int, step: int) -> float:
    """Compute the gradients of one step over pairs of one slot in each language.

    Returns the loss in nats per token of the headlines.
    """
    groups = []
    for at, locale in enumerate(LOCALES):
        slot = SLOTS[(step + 3 * at) % len(SLOTS)]
        source = pairs(_step_seed(seed, step), only=(locale, slot))
        groups.append([_tokens(tokenizer, pair) for pair in islice(source, PAIRS)])
    total = sum(len(headline) for group in groups for _, headline in group)
    loss = 0.0
    for at, (locale, group) in enumerate(zip(LOCALES, groups, strict=True)):
        begin = tokenizer.encode(prefix(locale, SLOTS[(step + 3 * at) % len(SLOTS)])).ids
        group.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for chunk in (group[k : k + CHUNK] for k in range(0, len(group), CHUNK)):
            share = _nats(model, begin, chunk) / total
            share.backward()
            loss += share.item()
    return loss


def _tokens(tokenizer: Tokenizer, pair: Pair) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt after its prefix, and those of the headline with the end token."""
    whole = format_prompt(pair.locale, pair.slot, pair.topic, pair.items)
    begin = prefix(pair.locale, pair.slot)
    headline = [*tokenizer.encode(pair.headline).ids, _end(tokenizer)]
    return tokenizer.encode(whole[len(begin) :]).ids, headline


def _nats(model: Any, begin: list[int], chunk: Sequence[tuple[list[int], list[int]]]) -> Any:
    """Return the summed loss of all headline tokens. The shared prefix is computed once."""
    import torch

    past = model.transformer(torch.tensor([begin]), use_cache=True).past_key_values
    past.batch_repeat_interleave(len(chunk))
    longest = max(len(prompt) + len(headline) for prompt, headline in chunk) - 1
    ids = torch.zeros((len(chunk), longest), dtype=torch.long)
    targets = torch.full((len(chunk), longest), -100)
    for row, (prompt, headline) in enumerate(chunk):
        sequence = torch.tensor(prompt + headline)
        ids[row, : len(sequence) - 1] = sequence[:-1]
        targets[row, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    hidden = model.transformer(ids, past_key_values=past, use_cache=True).last_hidden_state
    is_target = targets >= 0
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_target]), targets[is_target], reduction="sum")


def perplexities(model: Any, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the perplexity per token of unseen headlines, by language and group.

    Groups: new facts in learnt shapes; held-out shapes; held-out topics, given as words to copy.
    """
    import torch

    found: dict[str, float] = {}
    sources = {
        "new_facts": pairs(_step_seed(-1, 0)),
        "held_out_shapes": pairs(_step_seed(-1, 1), held_out=True),
        "held_out_topics": _of_held_out_topics(random.Random(-1)),
    }
    for group, source in sources.items():
        nats, tokens = dict.fromkeys(LOCALES, 0.0), dict.fromkeys(LOCALES, 0)
        with torch.no_grad():
            for pair in islice(source, HELD_OUT):
                both = _tokens(tokenizer, pair)
                nats[pair.locale] += _nats(model, tokenizer.encode(prefix(pair.locale, pair.slot)).ids, [both]).item()
                tokens[pair.locale] += len(both[1])
        for locale in LOCALES:
            found[f"{locale}.perplexity.{group}"] = round(float(np.exp(nats[locale] / tokens[locale])), 3)
    return found


def _of_held_out_topics(rng: random.Random) -> Iterator[Pair]:
    while True:
        locale, slot = rng.choice(LOCALES), rng.choice(SLOTS)
        words = rng.choice(list(topics()[1].values()))[locale]
        fitting = [s for s in shapes()[locale, slot] if s.fits_unknown_interest and not s.items and not s.held_out]
        headline = render(rng, rng.choice(fitting).text, locale, words._replace(names=words.names[:1]))
        if headline is not None:
            yield Pair(locale, slot, words.names[0], 0, headline, "")


def _end(tokenizer: Tokenizer) -> int:
    return int(tokenizer.token_to_id(END) or 0)  # the only special token has id 0


def _step_seed(seed: int, step: int) -> int:
    return seed * 1_000_003 + step


def _save(model: Any, optimiser: Any, plan: Plan, step: int, state: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"weight.{name}": value.detach() for name, value in model.named_parameters()}
    for at, parameter in enumerate(model.parameters()):
        moments = optimiser.state[parameter]
        tensors |= {f"mean.{at}": moments["exp_avg"], f"square.{at}": moments["exp_avg_sq"]}
    metadata = {"plan": json.dumps(plan._asdict()), "step": str(step)}
    _write_atomically(state, lambda path: save_file(tensors, path, metadata))


def _resumed(model: Any, optimiser: Any, plan: Plan, state: Path) -> int:
    """Restore a saved training, and return the number of finished steps."""
    import torch
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        metadata = file.metadata()
        if (saved := json.loads(metadata["plan"])) != plan._asdict():
            raise ValueError(
                f"{state} is of a training with {saved}, not {plan._asdict()}; ask for that, or remove it to start "
                f"again"
            )
        step = int(metadata["step"])
        with torch.no_grad():
            for at, (name, parameter) in enumerate(model.named_parameters()):
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"mean.{at}"),
                    "exp_avg_sq": file.get_tensor(f"square.{at}"),
                }
    return step


def _write_atomically(path: Path, write: Any) -> None:
    """Write a file so that a kill during the write leaves the previous file."""
    temporary = path.with_name("." + path.name)
    write(temporary)
    os.replace(temporary, path)
