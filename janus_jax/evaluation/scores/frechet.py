"""Fréchet distance (Heusel et al., 2017) and Inception score (Salimans et al., 2016) of features, with NumPy alone.

Letters: N images, D features per image, K classes.
"""

import dataclasses
import functools
import io
import operator
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import disk_errors

FEW_IMAGES = 2048  # with fewer images than Inception has features the covariance is singular
MAX_MOMENTS_BYTES = 1 << 28  # of a file; that of 2,048 features in float64 has 34 MB
_SHUFFLE_SEED = 2020  # of torch-fidelity


class Origin(NamedTuple):
    """What features depend on besides the images. Distances between features of two origins mean nothing."""

    mode: str  # how images were resized, a key of `evaluation.resize.MODES`
    weights: str  # hash of the network's weights


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over images, from which mean and covariance follow. They add up over parts of a set of images."""

    count: int
    total: np.ndarray  # [D] float64, sum of the features
    products: np.ndarray  # [D, D] float64, sum of their outer products

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of images."""

    mean: np.ndarray  # [D] float64
    covariance: np.ndarray  # [D, D] float64, unbiased
    count: int | None  # number of images; None where a file does not tell
    origin: Origin | None  # None where a file does not tell
    name: str  # what messages call the set

    @classmethod
    def of(cls, moments: Moments, origin: Origin | None, name: str) -> Self:
        """The distribution with these moments. Raises UserError for fewer than two images, which have no covariance."""
        count, total, products = moments.count, moments.total, moments.products
        if count < 2:
            raise UserError(f"{name}: {count} image(s), expected at least 2 for a Fréchet distance")
        covariance = (products - np.outer(total, total) / count) / (count - 1)
        return cls(total / count, covariance, count, origin, name)


def moments(features: np.ndarray) -> Moments:
    """The moments of features [N, D], computed in float64."""
    features = features.astype(np.float64)
    return Moments(len(features), features.sum(axis=0), features.T @ features)


def total(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts of a set of images together."""
    return functools.reduce(operator.add, parts)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|difference of the means|^2 + tr(A) + tr(B) - 2 tr((A B)^1/2).

    The eigenvalues of A B are those of the symmetric A^1/2 B A^1/2, so neither imaginary parts nor a singular matrix do
    harm. Rounding can make eigenvalues negative that are zero; they count as zero.

    Raises:
        UserError: the features differ in number, or in how they were computed.
    """
    _check_comparable(a, b)
    return _distance(a, b, _root(a.covariance))


def jackknife_error(folds: Sequence[Moments], reference: Gaussian) -> float:
    """The standard error of the distance to a reference, from leaving out each fold of the images in turn.

    It is the delete-one-group jackknife (Shao and Tu 1995, section 2.3) for equal folds. The reference counts as
    exact, and its matrix root is computed once.

    Raises UserError when two folds or more do not leave enough images, or as `frechet_distance` does.
    """
    whole, root = total(folds), _root(reference.covariance)
    distances = []
    for number, fold in enumerate(folds):
        rest = Moments(whole.count - fold.count, whole.total - fold.total, whole.products - fold.products)
        images = Gaussian.of(rest, reference.origin, f"the images without fold {number}")
        _check_comparable(reference, images)
        distances.append(_distance(reference, images, root))
    spread = np.array(distances) - np.mean(distances)
    return float(np.sqrt((len(folds) - 1) / len(folds) * (spread @ spread)))


def _check_comparable(a: Gaussian, b: Gaussian) -> None:
    if a.mean.shape != b.mean.shape:
        raise UserError(f"{a.name} has {a.mean.size} features per image, {b.name} has {b.mean.size}")
    if a.origin and b.origin:
        for field, ours, theirs in zip(Origin._fields, a.origin, b.origin, strict=True):
            if ours != theirs:
                raise UserError(f"{field} {ours!r} of {a.name} differs from {theirs!r} of {b.name}, expected the same")


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance matrix."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T


def _distance(a: Gaussian, b: Gaussian, root: np.ndarray) -> float:
    """The distance of two sets, given the root of the first covariance."""
    joint = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = 2 * np.sqrt(np.maximum(joint, 0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - overlap)


def distance_notes(*sets: Gaussian) -> list[str]:
    """What a reader must know of a distance between these sets: few images, or features of unknown origin."""
    notes = []
    for images in sets:
        if images.origin is None:
            notes.append(f"{images.name} does not say how its features were computed: a mistake would go unnoticed")
        if images.count is not None and images.count < FEW_IMAGES:
            notes.append(f"{images.name} has {images.count} images; distances of fewer than {FEW_IMAGES} are biased")
    return notes


def inception_score(logits: np.ndarray, splits: int = 10, shuffle: bool = True) -> tuple[float, float]:
    """Mean and standard deviation over parts of exp(mean KL(p(y|x) || p(y))).

    Args:
        logits: [N, K], without the classifier's bias.
        splits: number of parts; part i is rows i N // splits to (i + 1) N // splits.
        shuffle: takes the rows in torch-fidelity's random order, since images of one kind often lie together.

    Raises UserError when there are fewer images than parts.
    """
    if len(logits) < splits:
        raise UserError(f"Inception score of {len(logits)} image(s), expected at least {splits}, one for each part")
    if shuffle:
        logits = logits[np.random.RandomState(_SHUFFLE_SEED).permutation(len(logits))]
    scores = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].astype(np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        # A class whose probability is zero in every row contributes nothing.
        log_marginal = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def write_gaussian(path: epath.PathLike, images: Gaussian) -> None:
    """Writes a set as `.npz` with pytorch-fid's `mu` and `sigma`, and `n`, `mode` and `weights` of our own."""
    path = epath.Path(path)
    content: dict[str, np.ndarray] = {"mu": images.mean, "sigma": images.covariance}
    if images.count is not None:
        content["n"] = np.array(images.count)
    if images.origin is not None:
        content |= {field: np.array(value) for field, value in images.origin._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **content)  # type: ignore[arg-type]
    with disk_errors(path):
        partial = path.parent / f".{path.name}.partial"
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)


def read_gaussian(path: epath.PathLike) -> Gaussian:
    """Reads a `.npz` of ours, of pytorch-fid or of clean-fid.

    Raises:
        UserError: the file is missing, too large, damaged, holds Python objects, or `mu` and `sigma` are not a vector
            and a matrix of finite numbers.
    """
    path = epath.Path(path)
    try:
        if path.stat().length > MAX_MOMENTS_BYTES:
            raise UserError(f"{path}: larger than {MAX_MOMENTS_BYTES} bytes, expected the moments of a set of images")
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_MOMENTS_BYTES:
                raise UserError(f"{path}: unpacks to more than {MAX_MOMENTS_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("mu", "sigma", "n", *Origin._fields) if name in content}
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many types for damaged files
        raise UserError(f"{path}: not a readable .npz of mu and sigma ({error})") from error
    for name, dimensions in (("mu", 1), ("sigma", 2)):
        if name not in arrays:
            raise UserError(f"{path}: has no {name}, expected the moments mu and sigma")
        found = arrays[name]
        if found.dtype.kind != "f" or found.ndim != dimensions or not np.isfinite(found).all():
            raise UserError(f"{path}: {name} {found.dtype} {list(found.shape)}, expected finite numbers")
    mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    if covariance.shape != (mean.size, mean.size):
        raise UserError(f"{path}: sigma is {list(covariance.shape)}, expected [{mean.size}, {mean.size}] as mu is")
    if not np.allclose(covariance, covariance.T):
        raise UserError(f"{path}: sigma is not symmetric, expected a covariance matrix")
    origin = Origin(*(str(arrays[field]) for field in Origin._fields)) if set(Origin._fields) <= arrays.keys() else None
    return Gaussian(mean, covariance, _count(path, arrays), origin, path.name)


def _count(path: epath.Path, arrays: dict[str, np.ndarray]) -> int | None:
    if "n" not in arrays:
        return None
    if arrays["n"].shape != () or arrays["n"].dtype.kind not in "iu" or arrays["n"] < 2:
        raise UserError(f"{path}: n={arrays['n']}, expected a number of images from 2")
    return int(arrays["n"])
