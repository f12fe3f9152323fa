"""Distances and scores against pytorch-fid, clean-fid and torch-fidelity, with singular and damaged sets."""

import json

import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.scores.frechet import (
    Gaussian,
    Moments,
    Origin,
    distance_notes,
    frechet_distance,
    inception_score,
    jackknife_error,
    moments,
    read_gaussian,
    write_gaussian,
)
from tests.helpers.golden_evaluation import GOLDEN

FEATURES = np.load(GOLDEN / "frechet/features.npz")
EXPECTED = json.loads((GOLDEN / "frechet/expected.json").read_text())
ORIGIN = Origin("clean", "abc")


def gaussian(name, origin=ORIGIN):
    return Gaussian.of(moments(FEATURES[name]), origin, name)


@pytest.mark.parametrize("pair", EXPECTED["frechet"])
def test_distances_equal_the_symmetric_form_and_the_tools(pair):
    a, b = map(gaussian, pair.split(","))
    distance, expected = frechet_distance(a, b), EXPECTED["frechet"][pair]
    assert distance == pytest.approx(expected["eigenvalues_of_S1^.5_S2_S1^.5"], rel=1e-6, abs=1e-9)
    assert distance == pytest.approx(expected["pytorch_fid_0.3.0"], abs=2e-6)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-6, abs=1e-9)


def test_small_moments_equal_clean_fid():
    for case in json.loads((GOLDEN / "frechet/clean_fid.json").read_text())["cases"]:
        a, b = (
            Gaussian(np.array(case[f"mu{i}"], float), np.array(case[f"sigma{i}"], float), None, None, "") for i in "12"
        )
        assert frechet_distance(a, b) == pytest.approx(case["fid"], abs=1e-9)


def test_moments_of_parts_add_up():
    whole, parts = moments(FEATURES["p"]), [moments(part) for part in np.array_split(FEATURES["p"], 7)]
    total = sum(parts[1:], parts[0])
    assert total.count == whole.count
    np.testing.assert_allclose(total.products, whole.products, rtol=1e-13)
    covariance = Gaussian.of(total, ORIGIN, "p").covariance
    np.testing.assert_allclose(covariance, np.cov(FEATURES["p"].astype(float), rowvar=False), rtol=0, atol=1e-12)


def test_the_jackknife_leaves_out_each_fold_in_turn():
    features, reference = FEATURES["p"].astype(float), gaussian("q")
    folds = [features[number::10] for number in range(10)]
    distances = []
    for number in range(10):
        rest = np.concatenate([fold for other, fold in enumerate(folds) if other != number])
        images = Gaussian(rest.mean(0), np.cov(rest, rowvar=False), len(rest), ORIGIN, "rest")
        distances.append(frechet_distance(reference, images))
    expected = np.sqrt(0.9 * np.sum((np.array(distances) - np.mean(distances)) ** 2))
    assert jackknife_error([moments(fold) for fold in folds], reference) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UserError, match="features per image"):
        jackknife_error([moments(fold[:, :2]) for fold in folds], reference)


@pytest.mark.parametrize(("splits", "shuffle"), [(10, True), (10, False), (1, True), (1, False)])
def test_inception_score_equals_torch_fidelity(splits, shuffle):
    expected = EXPECTED["inception_score_torch_fidelity"][f"splits={splits}, shuffle={shuffle}"]
    mean, std = inception_score(np.load(GOLDEN / "frechet/logits.npz")["logits"], splits, shuffle)
    assert mean == pytest.approx(expected["inception_score_mean"], abs=1e-9)
    assert std == pytest.approx(expected["inception_score_std"], abs=1e-9)


def test_a_file_comes_back_and_pytorch_fids_file_is_read(tmp_path):
    ours = gaussian("p")
    write_gaussian(tmp_path / "p.npz", ours)
    back = read_gaussian(tmp_path / "p.npz")
    assert (back.count, back.origin, frechet_distance(ours, back)) == (420, ORIGIN, pytest.approx(0, abs=1e-9))
    theirs = read_gaussian(GOLDEN / "frechet/moments_p.npz")
    assert theirs.origin is None and frechet_distance(ours, theirs) == pytest.approx(0, abs=1e-9)
    notes = distance_notes(ours, theirs)
    assert "p has 420 images" in notes[0] and "moments_p.npz does not say" in notes[1]


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"mode 'clean' of p differs from 'pytorch_fid' of q"):
        frechet_distance(gaussian("p"), gaussian("q", Origin("pytorch_fid", "abc")))
    with pytest.raises(UserError, match="weights 'abc' of p differs from 'other' of q"):
        frechet_distance(gaussian("p"), gaussian("q", Origin("clean", "other")))
    other = Gaussian(np.zeros(3), np.eye(3), 10, ORIGIN, "r")
    with pytest.raises(UserError, match="p has 40 features per image, r has 3"):
        frechet_distance(gaussian("p"), other)
    with pytest.raises(UserError, match=r"s: 1 image\(s\)"):
        Gaussian.of(Moments(1, np.zeros(2), np.zeros((2, 2))), ORIGIN, "s")
    with pytest.raises(UserError, match=r"9 image\(s\), expected at least 10"):
        inception_score(np.zeros((9, 4)))


def damaged_files():
    mean, matrix = np.zeros(2), np.eye(2)
    yield "no mu", {"sigma": matrix}
    yield r"mu float64 \[2, 2\]", {"mu": matrix, "sigma": matrix}
    yield "mu int64", {"mu": np.zeros(2, int), "sigma": matrix}
    yield "sigma float64", {"mu": mean, "sigma": matrix * np.nan}
    yield r"sigma is \[3, 3\]", {"mu": mean, "sigma": np.eye(3)}
    yield "sigma is not symmetric", {"mu": mean, "sigma": np.array([[1.0, 2], [0, 1]])}
    yield "n=1", {"mu": mean, "sigma": matrix, "n": np.array(1)}
    yield "not a readable", {"mu": np.array([object()], object), "sigma": matrix}


@pytest.mark.parametrize(("message", "content"), list(damaged_files()))
def test_damaged_moments_are_one_line(tmp_path, message, content):
    np.savez(tmp_path / "m.npz", **content)
    with pytest.raises(UserError, match=rf"m\.npz: .*{message}"):
        read_gaussian(tmp_path / "m.npz")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", None])
def test_a_file_that_is_none_is_one_line(tmp_path, data):
    if data is not None:
        (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"m\.npz: not a readable .npz"):
        read_gaussian(tmp_path / "m.npz")
