"""Converting GPT-2 checkpoints: accepted files, the cache, and errors that say what to do."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import manifest
from models import parity as reference
from models.copywriter.checkpoint import build, checkpoint_folder, read_tokenizer
from models.copywriter.facts import Facts
from models.copywriter.gpt2_graph import CheckpointError, build_graph
from models.copywriter.locate import copywriter_folder_of
from models.copywriter.model import GRAPH, Copywriter
from models.manifest import ManifestError
from stream.settings import SHIPPED_MODELS, SettingsError, load
from tests.harness.gpt2_checkpoints import CONFIG, byte_level, save, weights_of, word_piece


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOPWINDOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "copywriters"


def whole(folder: Path) -> Path:
    save(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    return folder


def test_the_graph_does_not_depend_on_how_weights_are_split_into_files(tmp_path: Path) -> None:
    expected = build_graph(CONFIG, weights_of(CONFIG))
    assert build(save(tmp_path / "prefixed")) == expected
    assert build(save(tmp_path / "bare", prefix="")) == expected
    assert build(save(tmp_path / "shards", shards=3)) == expected


def test_float16_weights_are_read(tmp_path: Path) -> None:
    half = {name: value.astype(np.float16).astype(np.float32) for name, value in weights_of(CONFIG).items()}
    assert build(save(tmp_path, kind=np.float16)) == build_graph(CONFIG, half)


def test_bfloat16_weights_are_read(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = {name: value.astype(ml_dtypes.bfloat16).astype(np.float32) for name, value in weights_of(CONFIG).items()}
    assert build(save(tmp_path, kind=ml_dtypes.bfloat16)) == build_graph(CONFIG, half)


def test_a_conversion_has_a_parity_case_and_the_checkpoints_licence(tmp_path: Path) -> None:
    made = checkpoint_folder(str(whole(tmp_path / "tiny")))
    found = manifest.load(made, "copywriter")
    assert found.licence == "that of the checkpoint"
    (check,) = reference.verify(made)
    assert check.passed and 0 < check.difference < check.bound
    (made / GRAPH).write_bytes(build_graph(CONFIG, weights_of(CONFIG, 2)))
    manifest.write(
        made, name="tiny", kind="copywriter", created=found.created, data=found.data, metrics={}, params=found.params
    )
    (check,) = reference.verify(made)
    assert not check.passed, "the weights differ"


TEXT = "Based on your interest in kitchen"


def test_byte_level_bpe_is_read_from_both_file_formats(tmp_path: Path) -> None:
    tokenizer = byte_level()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    tokenizer.save(str(tmp_path / "one" / "tokenizer.json"))
    tokenizer.model.save(str(tmp_path / "two"))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"vocab.json", "merges.txt"}
    ids = tokenizer.encode(TEXT).ids
    for name in ("one", "two"):
        read = read_tokenizer(tmp_path / name)
        assert read.encode(TEXT).ids == ids
        assert read.decode(ids) == TEXT, name


def test_word_pieces_start_with_cls_and_decode_without_spaces(tmp_path: Path) -> None:
    word_piece(tmp_path)
    read = read_tokenizer(tmp_path)
    encoded = read.encode("我们推荐厨具，Kitchen lamps")
    assert encoded.tokens == ["[CLS]", *"我们推荐厨具，", "kitchen", "lamp", "##s"]
    assert read.decode(encoded.ids) == "我们推荐厨具，kitchen lamps"


def test_a_cased_tokenizer_stays_cased(tmp_path: Path) -> None:
    word_piece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert read_tokenizer(tmp_path).encode("Kitchen").tokens == ["[CLS]", "[UNK]"]


def test_a_checkpoint_is_converted_once_and_writes_headlines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = whole(tmp_path / "tiny")
    with caplog.at_level(logging.WARNING):
        converted = checkpoint_folder(str(folder))
        assert checkpoint_folder(str(folder)) == converted
    assert [record.message for record in caplog.records if "converting" in record.message] == [
        f"converting {folder} for ONNX Runtime; this happens once, about 10 s for 124 million weights"
    ]
    writer = Copywriter(converted, max_tokens=64, samples=8)
    assert writer.manifest.name == "tiny" and writer.lexicon.names == {"en": {}, "zh": {}}
    assert writer.version == manifest.load(converted, "copywriter").version
    facts = [Facts("en", "for_you", ""), Facts("en", "for_you", "kitchen_ware"), Facts("de", "for_you", "")]
    together = writer.write(facts, 1)
    assert len(together) == 3 and together[2] is None, "there is no German prompt"
    assert together == [writer.write([fact], 1)[0] for fact in facts]


def test_a_converted_model_ends_a_headline_with_a_sentence_or_line(tmp_path: Path) -> None:
    converted = checkpoint_folder(str(whole(tmp_path / "tiny")))
    tokenizer = byte_level()
    ends = {
        tokenizer.decode([at], skip_special_tokens=False)
        for at in manifest.load(converted, "copywriter").params["ends"]
    }
    assert ends >= {".", "!", "?", "\n", "<|endoftext|>"}
    assert not any(character.isalnum() for end in ends - {"<|endoftext|>"} for character in end)


def test_an_end_token_beyond_the_vocabulary_is_ignored(tmp_path: Path) -> None:
    """The config of Chinese GPT-2s has the default 50256 with 21128 tokens."""
    save(tmp_path, eos_token_id=50256)
    word_piece(tmp_path)
    ends = manifest.load(checkpoint_folder(str(tmp_path)), "copywriter").params["ends"]
    read = read_tokenizer(tmp_path)
    assert ends == [read.token_to_id("[SEP]"), read.token_to_id("。")]


def test_changed_content_is_converted_again(tmp_path: Path, cache: Path) -> None:
    first = checkpoint_folder(str(whole(tmp_path / "tiny")))
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG | {"layer_norm_epsilon": 1e-3}))
    second = checkpoint_folder(str(tmp_path / "tiny"))
    assert {path.name for path in cache.iterdir()} == {first.name, second.name} and first != second


def cut(place: Path) -> None:
    graph = place / "gpt2.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])


def without_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


@pytest.mark.parametrize("harm", [cut, without_manifest])
def test_a_damaged_conversion_is_repeated(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = str(whole(tmp_path / "tiny"))
    place = checkpoint_folder(folder)
    good = (place / "gpt2.onnx").read_bytes()
    harm(place)
    assert checkpoint_folder(folder) == place
    assert (place / "gpt2.onnx").read_bytes() == good
    Copywriter(place)


def test_an_interrupted_conversion_leaves_nothing_readable(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(whole(tmp_path / "tiny"))
    with monkeypatch.context() as broken:
        broken.setattr(manifest, "write", lambda *_, **__: exit("killed"))
        with pytest.raises(SystemExit):
            checkpoint_folder(folder)
    assert [path for path in cache.iterdir() if not path.name.startswith(".")] == []
    # kill -9 leaves a partial folder under its temporary name.
    (cache / ".making-x" / "half").mkdir(parents=True)
    Copywriter(checkpoint_folder(folder))


def test_a_folder_with_a_manifest_is_not_converted(tmp_path: Path, cache: Path) -> None:
    place = checkpoint_folder(str(whole(tmp_path / "tiny")))
    assert checkpoint_folder(str(place)) == place


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoint_folder(str(folder))
    assert isinstance(error.value, ManifestError), "the worker tells it in a sentence"
    return str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    tmp_path = tmp_path / "tiny"
    tmp_path.mkdir()
    assert "neither manifest.json" in error_of(tmp_path)
    assert "nor config.json (a Hugging Face checkpoint)" in error_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in error_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type 'llama', expected 'gpt2'" in error_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "lacks model.safetensors; download the complete checkpoint again" in error_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is not read" in error_of(tmp_path) and "save_pretrained" in error_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors cannot be read" in error_of(tmp_path)
    save(tmp_path)
    assert "has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt, or vocab.txt" in error_of(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizer" in error_of(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors" in error_of(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, vocab_size=200)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert "tokens and the model 200; they are not from the same checkpoint" in error_of(tmp_path)


def test_a_missing_path_is_not_taken_for_a_hub_name() -> None:
    assert error_of(Path("/nowhere/gpt2")) == (
        "/nowhere/gpt2 is not a folder; name one with a copywriter or a Hugging Face GPT-2 in it"
    )


def test_a_name_is_found_in_the_hubs_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    at = tmp_path / "hub" / "models--shop--tiny"
    whole(at / "snapshots" / "abc")
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text("abc")
    assert Copywriter(checkpoint_folder("shop/tiny")).manifest.name == "tiny"


def test_without_the_hub_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"'gpt2' is not a folder, and could not be downloaded .*hf download gpt2 --local-dir"
    ):
        checkpoint_folder("gpt2")


def test_a_worker_uses_the_configured_copywriter(tmp_path: Path, cache: Path) -> None:
    assert copywriter_folder_of(load({})) == SHIPPED_MODELS / "copywriter"
    folder = str(whole(tmp_path / "tiny"))
    assert copywriter_folder_of(load({"SHOPWINDOW_COPYWRITER": folder})).parent == cache
    with pytest.raises(SettingsError, match="SHOPWINDOW_COPYWRITER is ' ', expected a folder or a name"):
        load({"SHOPWINDOW_COPYWRITER": " "})
