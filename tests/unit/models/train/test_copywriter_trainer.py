"""Training the copywriter: its vocabulary, and that a stopped training ends with the same weights."""

from pathlib import Path
from typing import Any

import pytest

from models import manifest
from models.copywriter.facts import Facts
from models.copywriter.model import Copywriter
from models.copywriter.prompt import END, ITEMS, TOPIC, format_prompt, prefix
from models.train.copywriter import evaluation, trainer
from models.train.copywriter.trainer import Plan, build_tokenizer, train
from tests.harness.training import ignore_line


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the model so that training takes seconds; it learns nothing."""
    sizes = {"LAYERS": 1, "WIDTH": 32, "HEADS": 2, "VOCABULARY": 600, "VOCABULARY_TEXTS": 300, "WINDOWS": 2, "PAIRS": 4,
             "CHINESE_WORDS": 40, "HELD_OUT": 6, "SAVE_SECONDS": 0.0}  # fmt: skip
    for name, value in sizes.items():
        monkeypatch.setattr(trainer, name, value)
    monkeypatch.setattr(evaluation, "SEGMENTS", 4)


@pytest.mark.slow
def test_tokens_are_whole_characters_and_decode_to_the_text(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "VOCABULARY", 4000)
    tokenizer = build_tokenizer(1)
    for text in (f"Start with {ITEMS[0]} and {TOPIC}", f"从{ITEMS[0]}开始，慢慢看", "Straße, 書法 and 💥"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    chinese = "为安静的夜晚挑选的灯具，你也许会喜欢"
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(chinese).ids]
    assert "".join(tokens) == chinese, "each token is whole characters"
    assert len(tokens) < len(chinese), "some tokens are words"
    assert tokenizer.encode(f"{TOPIC}{ITEMS[2]}<for_you>{END}").ids[-1] == tokenizer.token_to_id(END) == 0
    assert len(tokenizer.encode(f"{TOPIC}{ITEMS[2]}<for_you>{END}").ids) == 4


@pytest.mark.slow
def test_a_prompt_has_the_same_tokens_whole_and_after_its_prefix(small: None) -> None:
    tokenizer = build_tokenizer(1)
    for locale, topic in (("en", "lamps"), ("zh", "灯具"), ("en", TOPIC), ("zh", ""), ("en", "")):
        begin, whole = prefix(locale, "fresh"), format_prompt(locale, "fresh", topic, 2)
        assert tokenizer.encode(begin).ids + tokenizer.encode(whole[len(begin) :]).ids == tokenizer.encode(whole).ids


def test_a_stopped_training_resumes_and_ends_with_the_same_weights(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="training needs torch: make setup-train")
    plan = Plan(seed=3, pretraining=3, fine_tuning=3)
    lines: list[str] = []
    straight = train(tmp_path / "straight", plan, lines.append)
    assert "copywriter, fine-tuning, step 6 of 6: loss" in lines[-1] and lines[-1].endswith(
        "nats per token, 0 min left"
    )
    step_of = trainer._fine_tune_step

    def stopped(model: Any, tokenizer: Any, seed: int, step: int) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return step_of(model, tokenizer, seed, step)

    monkeypatch.setattr(trainer, "_fine_tune_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", plan, lines.append)
    with pytest.raises(ValueError, match="ask for that, or remove it"):
        train(tmp_path / "stopped", plan._replace(seed=4), ignore_line)
    monkeypatch.setattr(trainer, "_fine_tune_step", step_of)
    resumed = train(tmp_path / "stopped", plan, lines.append)
    assert "copywriter: resumes after step 4 of 6" in lines
    assert resumed.version == straight.version
    assert resumed.metrics == straight.metrics
    assert train(tmp_path / "other", plan._replace(seed=4), ignore_line).version != straight.version


def test_a_trained_model_can_be_loaded(small: None, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch: make setup-train")
    written = train(tmp_path, Plan(seed=1, pretraining=1, fine_tuning=1), ignore_line)
    assert manifest.load(tmp_path, "copywriter") == written
    assert set(written.files) == {"gpt2.onnx", "reference.npz", "tokenizer.json"}
    assert isinstance(written.recipe, dict) and len(written.recipe["first_losses"]) == 4
    assert set(written.params["turns"]) == {"en", "zh"}, "the guard needs the bigrams of headlines"
    assert {f"{locale}.perplexity.held_out_topics" for locale in ("en", "zh")} <= set(written.metrics)
    assert written.metrics["zh.with_items/segments"] + written.metrics["zh.without_items/segments"] == 4
    assert len(Copywriter(tmp_path).write([Facts("en", "for_you", "lighting")], 1)) == 1
