"""GPT-2 that writes headlines, in ONNX Runtime: sampled by temperature, top-k and top-p, and guarded.

Several headlines are drawn for each segment, the likeliest that passes the guard is kept, none where none does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from models import manifest
from models.gpt2 import Gpt2, Sampling
from stream.ids import key64

GRAPH, TOKENIZER = "gpt2.onnx", "tokenizer.json"
LOCALES = ("en", "zh")  # that there are prompts in
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
    """A GPT-2 read from a folder: ours, or one that `models.checkpoint` converted.

    Raises ManifestError where a file is missing or changed, ValueError where the graph is of another version.
    """

    def __init__(
        self, folder: Path, *, temperature: float = 0.9, top_k: int = 50, top_p: float = 0.95, max_tokens: int = 50,
        samples: int = 4,
    ) -> None:  # fmt: skip
        self.manifest = manifest.load(folder, "copywriter")
        self._sampling, self._samples = Sampling(temperature, top_k, top_p, max_tokens), samples
        # locale -> category -> what it is called; empty for a model that was not trained on a shop's categories.
        self.names: dict[str, dict[str, list[str]]] = self.manifest.params["names"]
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._ends = frozenset(self.manifest.params.get("ends") or [self._tokenizer.token_to_id(END)])
        self._model = Gpt2(folder / GRAPH)

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def write(self, batch: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each; None where no sample passed the guard, or the category is none that it knows.

        All are drawn together, and the same facts and seed give the same headline, whatever else is in the batch.
        """
        copies: list[Copy | None] = [None] * len(batch)
        names = [self._names(facts) for facts in batch]
        known = [at for at, of in enumerate(names) if of is not None]
        drawn = self._model.generate(
            [self._prompt(batch[at], names[at] or {}) for at in known],
            [(seed & 0x7FFFFFFF, key64("|".join(batch[at][:3])) & 0x7FFFFFFF) for at in known],
            self._ends, self._sampling, self._samples,
        )  # fmt: skip
        for at, texts in zip(known, drawn, strict=True):
            written = [
                Copy(self._tokenizer.decode(text.ids).strip(), text.logprob / (len(text.ids) + 1))
                for text in texts
                if text.ended
            ]
            good = [copy for copy in written if guard(copy.text, batch[at], names[at] or {}) is None]
            copies[at] = max(good, key=lambda copy: copy.logprob, default=None)
        return copies

    def _names(self, facts: Facts) -> Mapping[str, Sequence[str]] | None:
        """For each known category what it is called in the language; None where this one or the language is unknown."""
        if self.names:
            names = self.names.get(facts.locale)
            return names if names is not None and (not facts.category or facts.category in names) else None
        if facts.locale not in LOCALES:
            return None
        return {facts.category: [re.sub(r"[\W_]+", " ", facts.category).strip()]} if facts.category else {}

    def _prompt(self, facts: Facts, names: Mapping[str, Sequence[str]]) -> list[int]:
        topic = names[facts.category][0] if facts.category else ""
        ids: list[int] = self._tokenizer.encode(prompt(facts.locale, facts.slot, topic)).ids
        return ids
