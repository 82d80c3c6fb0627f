"""The ranker: a worked example of the softmax, ONNX compared with NumPy, and a fit that recovers known weights."""

from pathlib import Path

import numpy as np
import pytest

from models.manifest import FittedWith, ManifestError, load
from models.parity import verify
from models.ranker.columns import FEATURES, REASON_OF, F, features_hash, signals_hash
from models.ranker.model import Ranker
from models.ranker.reasons import largest_term
from models.train.ranker.fit import Choices, Fit, export, fit, sample_phi
from models.train.ranker.graph import NARROW, WIDE, Head, graph
from stream.codes import REASON_POPULAR
from stream.settings import SHIPPED_MODELS
from tests.harness.ranker_model import write_ranker_folder


def test_worked_example_of_the_softmax_gives_its_probabilities() -> None:
    import onnxruntime as ort

    theta = np.array([[0.1], [0.2], [0.3], [0.4]], np.float32)
    phi = np.array(
        [[[0.8, 0.2, 0.5, 0.3], [0.2, 0.5, 0.8, 0.1], [0.5, 0.3, 0.2, 0.8], [0.3, 0.1, 0.5, 0.3]]], np.float32
    )
    (p,) = ort.InferenceSession(graph()).run(None, {"phi": phi, "mask": np.ones((1, 4), bool), "theta": theta})
    assert (phi @ theta)[0, :, 0] == pytest.approx([0.39, 0.40, 0.49, 0.32])
    assert p[0] == pytest.approx([0.2471, 0.2495, 0.2730, 0.2304], abs=5e-5)
    assert p[0].argmax() == 2, "C3 has the highest probability"


def test_probabilities_equal_numpy_and_padding_gets_zero(tmp_path: Path) -> None:
    ranker = Ranker(write_ranker_folder(tmp_path))
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(5, 256, F)).astype(np.float32)
    count = np.array([256, 3, 1, 0, 40], np.int32)
    p = ranker.score(phi, count)
    for u in range(5):
        n = count[u]
        z = (phi[u, :n].astype(np.float64) @ ranker.theta)[:, 0]
        expected = np.exp(z - z.max()) / np.exp(z - z.max()).sum() if n else z
        np.testing.assert_allclose(p[u, :n], expected, atol=1e-5)
        assert (p[u, n:] == 0).all()
        np.testing.assert_array_equal(ranker.score(phi[u : u + 1], count[u : u + 1])[0], p[u], "alone as in a batch")


def test_ranker_fitted_on_other_features_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("models.train.ranker.fit.features_hash", lambda: "sha256:other")
        folder = write_ranker_folder(tmp_path)
    with pytest.raises(ManifestError, match=r"other features .*shopwindow train ranker"):
        Ranker(folder)


def test_ranker_fitted_on_signals_of_another_meaning_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_ranker_folder(tmp_path)
    monkeypatch.setattr("models.ranker.columns.SIGNALS_MEANING", 0)
    with pytest.raises(ManifestError, match=r"item signals with another meaning .*shopwindow train ranker"):
        Ranker(folder)


def test_mlp_scores_equal_numpy_and_missing_mlp_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)

    def random_weights(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    head = Head(
        random_weights(F, 1),
        random_weights(F, WIDE),
        random_weights(WIDE),
        random_weights(WIDE, NARROW),
        random_weights(NARROW),
        random_weights(NARROW, 1),
        1.0,
    )
    theta = random_weights(F, 1)
    export(tmp_path / "both", Fit(theta, 1.0, 2.0, 0.5), "a test", "", {}, head)
    mlp, logit = Ranker(tmp_path / "both", "mlp"), Ranker(tmp_path / "both")
    phi, count = sample_phi(), np.array([40, 7, 1], np.int32)
    p = mlp.score(phi, count)
    for u, n in enumerate(count.tolist()):
        score = head.score(phi[u, :n])[:, 0]
        np.testing.assert_allclose(p[u, :n], np.exp(score - score.max()) / np.exp(score - score.max()).sum(), atol=1e-5)
    assert (p != logit.score(phi, count)).any()
    assert (mlp.head, logit.head) == ("mlp", "logit") and mlp.version == logit.version
    np.testing.assert_array_equal(mlp.theta, theta, "reasons come from the logit's theta")
    assert all(check.passed for check in verify(tmp_path / "both")) and len(verify(tmp_path / "both")) == 2
    with pytest.raises(ManifestError, match=r"has no MLP; set SHOPWINDOW_HEAD=logit"):
        Ranker(write_ranker_folder(tmp_path), "mlp")


def test_shipped_ranker_has_todays_features_and_beats_chance() -> None:
    ranker = Ranker(SHIPPED_MODELS / "ranker")
    assert ranker.manifest.features_hash == features_hash()
    assert ranker.manifest.fitted_with == FittedWith(
        history=load(SHIPPED_MODELS / "history", "history").version, signals=signals_hash(ranker.half_lives)
    )
    assert ranker.manifest.metrics["loss"] < ranker.manifest.metrics["uniform"] - 0.3


def test_feature_names_are_distinct() -> None:
    assert F == len(set(FEATURES)) >= 50


def test_fit_recovers_weights_despite_position_bias() -> None:
    rng = np.random.default_rng(3)
    n, c = 4000, 12
    phi = np.zeros((n, c, F), np.float32)
    phi[..., :4] = rng.normal(size=(n, c, 4))
    true_theta = np.array([1.5, -1.0, 0.5, 0.0])
    position = np.tile(np.arange(c, dtype=np.int32), (n, 1))
    count = rng.integers(2, c + 1, n)
    offered = np.arange(c) < count[:, None]
    utility = np.where(offered, phi[..., :4] @ true_theta - 0.3 * position + rng.gumbel(size=(n, c)), -np.inf)
    chosen = utility.argmax(axis=1).astype(np.int32)
    of, ends, at = phi[offered], np.cumsum(count), position[offered]
    cut = int(ends[999])
    parts = [
        Choices(of[:cut], ends[:1000], chosen[:1000], at[:cut]),
        Choices(of[cut:], ends[1000:] - cut, chosen[1000:], at[cut:]),
    ]
    losses: list[float] = []
    fitted = fit(Choices.joined(parts), progress=lambda point: losses.append(point.held_out))
    assert len(losses) == 30 and losses[-1] == fitted.loss < losses[0]
    assert fitted.theta[:4, 0] == pytest.approx(true_theta, abs=0.15)
    assert np.abs(fitted.theta[4:]).max() == 0, "features that never vary get weight 0"
    assert fitted.loss < fitted.uniform - 0.5


def test_too_few_choices_are_rejected() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit(Choices(np.zeros((18, F), np.float32), np.arange(2, 20, 2), np.zeros(9, np.int32)))


def test_reason_is_the_largest_positive_term_with_a_reason() -> None:
    phi = np.zeros((3, F), np.float32)
    theta = np.ones((F, 1), np.float32)
    at = FEATURES.index("category_day")
    phi[0, at], phi[0, FEATURES.index("from_fresh")] = 2.0, 9.0
    phi[1, at] = -1.0
    found = [largest_term(phi[k], theta.reshape(-1), REASON_OF) for k in range(3)]
    assert found == [(REASON_OF[at], 2.0), (REASON_POPULAR, 0.0), (REASON_POPULAR, 0.0)]
