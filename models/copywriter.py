"""GPT-2 that writes headlines, in ONNX Runtime: sampled by temperature, top-k and top-p, and guarded.

Several headlines are drawn for each segment, the likeliest that passes the guard is kept, none where none does. All
samples of a segment share its prompt, and segments are generated one by one: a headline does not depend on who else
asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from models import manifest
from stream.ids import key64

GRAPH, TOKENIZER = "gpt2.onnx", "tokenizer.json"
END = "<|end|>"
LONGEST = 96  # characters of a headline
_BANNED = re.compile(
    r"\b(free|sale|discounts?|offers?|cheap\w*|deals?|save|off|best|guarantee\w*|cure\w*|percent|price\w*|now only|limited)\b"
    r"|免费|打折|折扣|优惠|特价|促销|降价|最低|最好|第一|保证|治疗|包邮|限时|价格|元",
    re.I,
)
_DANGLING = re.compile(r"\b(a|about|and|at|by|for|from|in|of|on|or|the|to|with|your)$", re.I)
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


class Facts(NamedTuple):
    """What a headline is to be about."""

    locale: str
    slot: str
    category: str  # "" for none
    titles: tuple[str, ...] = ()  # of the leading items


class Copy(NamedTuple):
    text: str
    logprob: float  # mean of its tokens', nats


def prompt(locale: str, slot: str, topic: str) -> str:
    """What the model is given. Training and serving make it here."""
    if locale == "zh":
        about = f"基于你对{topic}的兴趣，我们推荐以下商品" if topic else "我们推荐以下商品"
    else:
        about = (
            f"Based on your interest in {topic}, we recommend the following products"
            if topic
            else "We recommend the following products"
        )
    return f"{slot}|{about}:"


def guard(text: str, facts: Facts, names: Mapping[str, Sequence[str]]) -> str | None:
    """None where the headline may be shown, else the reason why not.

    names: for each known category what headlines of the language call it. Only what was given may be said: no number, no
    price, offer or claim, no other category, the right language, a whole sentence.
    """
    if not 4 <= len(text) <= LONGEST:
        return "length"
    if re.search(r"[\d%$€£¥＄￥]|[^\w\s,.:;!?'’&\-，。：；！？、“”]", text):
        return "number or sign"
    if _BANNED.search(text):
        return "claim"
    chinese = len(_CHINESE.findall(text))
    if (facts.locale == "zh") != (chinese > 0) or (facts.locale == "zh" and re.search(r"[A-Za-z]{3}", text)):
        return "language"
    if (
        text[-1] in ",，、:：;；&-的"
        or _DANGLING.search(text)
        or re.search(r"\b(\w+) \1\b", text)
        or text != text.strip()
    ):
        return "not a sentence"
    lower = text.lower()
    mine = names.get(facts.category, ())
    if facts.category and not any(name.lower() in lower for name in mine):
        return "off topic"
    rest = lower
    for name in sorted(mine, key=len, reverse=True):
        rest = rest.replace(name.lower(), " ")
    for category, others in names.items():
        if category != facts.category and any(_says(rest, name.lower()) for name in others):
            return f"speaks of {category}"
    return None


def _says(text: str, name: str) -> bool:
    return name in text if _CHINESE.search(name) else re.search(rf"\b{re.escape(name)}\b", text) is not None


class Copywriter:
    """A GPT-2 read from a folder. Raises ManifestError where a file is missing or changed."""

    def __init__(
        self, folder: Path, *, temperature: float = 0.9, top_k: int = 50, top_p: float = 0.95, max_tokens: int = 50,
        samples: int = 4,
    ) -> None:  # fmt: skip
        self.manifest = manifest.load(folder, "copywriter")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._max_tokens, self._samples = max_tokens, samples
        params: dict[str, Any] = self.manifest.params
        self._shape: tuple[int, int, int] = (
            2 * params["n_layer"],
            params["n_head"],
            params["n_embd"] // params["n_head"],
        )
        self._positions: int = params["n_positions"]
        self.names: dict[str, dict[str, list[str]]] = params["names"]  # locale -> category -> what it is called
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._end = self._tokenizer.token_to_id(END)
        ort.disable_telemetry_events()  # what happens in the shop stays in the shop
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(folder / GRAPH), sess_options=options, providers=["CPUExecutionProvider"]
        )

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def write(self, batch: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each; None where no sample passed the guard, or the category is none that it knows.

        The same facts and seed give the same headline, whatever else is in the batch.
        """
        return [self._best(facts, seed) for facts in batch]

    def _best(self, facts: Facts, seed: int) -> Copy | None:
        names = self.names.get(facts.locale)
        if names is None or (facts.category and facts.category not in names):
            return None
        topic = names[facts.category][0] if facts.category else ""
        rng = np.random.default_rng([seed & 0x7FFFFFFF, key64("|".join(facts[:3])) & 0x7FFFFFFF])
        ids = self._tokenizer.encode(prompt(facts.locale, facts.slot, topic)).ids
        drawn = self._generate(np.array(ids, np.int64), rng)
        good = [copy for copy in drawn if copy is not None and guard(copy.text, facts, names) is None]
        return max(good, key=lambda copy: copy.logprob, default=None)

    def _generate(self, ids: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Copy | None]:
        """Samples that follow the prompt (T,); None where one did not end in time."""
        n = self._samples
        planes, heads, width = self._shape
        past = np.zeros((planes, n, heads, 0, width), np.float32)
        step = np.repeat(ids[None, :], n, 0)  # (n, T) int64
        texts: list[list[int]] = [[] for _ in range(n)]
        logprob = np.zeros(n)
        open_ = np.ones(n, np.bool_)
        for _ in range(min(self._max_tokens, self._positions - len(ids))):
            logits, past = self._session.run(None, {"ids": step, "past": past})
            tokens, logs = self._draw(logits, rng)
            for i in np.flatnonzero(open_):
                logprob[i] += logs[i]
                if tokens[i] == self._end:
                    open_[i] = False
                else:
                    texts[i].append(int(tokens[i]))
            if not open_.any():
                break
            step = tokens[:, None]
        return [
            None
            if open_[i] or not texts[i]
            else Copy(self._tokenizer.decode(texts[i]).strip(), float(logprob[i] / (len(texts[i]) + 1)))
            for i in range(n)
        ]

    def _draw(self, logits: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Any]:
        """One token of each row of (n, V) logits -> ids (n,), log-probabilities (n,) under the sampling distribution."""
        rows = np.arange(len(logits))[:, None]
        top = np.argpartition(logits, -self._top_k, axis=1)[:, -self._top_k :]  # (n, k)
        top = top[rows, np.lexsort((top, -logits[rows, top]))]  # the likeliest first, of equals the lowest id
        scores = logits[rows, top].astype(np.float64) / self._temperature
        p = np.exp(scores - scores[:, :1])
        p /= p.sum(axis=1, keepdims=True)
        # The likeliest tokens up to a total of top_p; the one that crosses it still counts.
        p[np.cumsum(p, axis=1) - p >= self._top_p] = 0.0
        p /= p.sum(axis=1, keepdims=True)
        at = (np.cumsum(p, axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(max=p.shape[1] - 1)
        chosen = rows[:, 0], at
        return top[chosen], np.log(np.maximum(p[chosen], 1e-12))
