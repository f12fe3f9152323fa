"""Networks over folders of images: the same numbers in any batch and on any number of devices."""

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.image_features import ClipNetwork, InceptionNetwork
from janus_jax.evaluation.image_files import ImageFile, images_below
from janus_jax.evaluation.resize import inception_pixels
from janus_jax.evaluation.scores.frechet import Gaussian, frechet_distance
from janus_jax.models.params import bind, build
from janus_jax.sharding import make_mesh
from janus_jax.weights.inception import load_inception
from tests.helpers.generated_images import write_folder
from tests.helpers.golden_evaluation import GOLDEN
from tests.helpers.metric_networks import clip_folder, write_small_inception


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return epath.Path(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def weights(folder):
    return write_small_inception(folder / "inception.safetensors")


@pytest.fixture(scope="module")
def network(weights):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
    return InceptionNetwork.from_file(weights, mesh=mesh)


@pytest.fixture(scope="module")
def images(folder):
    return images_below(write_folder(folder / "images", [f"{i}.png" for i in range(5)]))


def test_features_are_those_of_single_images_and_add_up(network, weights, images):
    seen = []
    found = network(images, lambda done, total: seen.append((done, total)))
    apply = jax.jit(bind(build(load_inception(weights)[0]), load_inception(weights)[1]))
    single = [apply(inception_pixels(PIL.Image.open(image.path), "clean")[None]) for image in images]
    features = np.concatenate([output.features for output in single]).astype(np.float64)
    np.testing.assert_allclose(found.logits, np.concatenate([output.logits for output in single]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.moments.total, features.sum(0), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.moments.products, features.T @ features, rtol=1e-4, atol=1e-4)
    assert seen == [(5, 5)] and found.moments.count == 5


def test_the_weights_and_the_mode_are_the_origin(network, weights, images):
    other = InceptionNetwork.from_file(weights, "pytorch_fid")
    assert network.origin.weights == other.origin.weights and network.origin != other.origin
    sets = [Gaussian.of(net(images).moments, net.origin, net.origin.mode) for net in (network, other)]
    with pytest.raises(UserError, match="mode 'clean' of clean"):
        frechet_distance(*sets)
    with pytest.raises(UserError, match="mode='tf'"):
        InceptionNetwork.from_file(weights, "tf")


def test_an_unreadable_image_is_named(network, folder, images):
    (folder / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        network([*images, ImageFile(folder / "broken.png")])


def test_clip_scores_are_those_of_the_golden_embeddings(folder):
    """Of the golden images whose pixels do not depend on the version of Pillow."""
    network = ClipNetwork.from_folder(clip_folder("clip", folder / "clip", with_tokenizer=True))
    expected = np.load(GOLDEN / "clip/expected.npz")
    texts = [" ".join(f"w{id}" for id in ids[1 : ids.tolist().index(110)]) for ids in expected["ids"]]
    images = [ImageFile(epath.Path(GOLDEN / f"clip/picture_{i}.png")) for i in (0, 2) for _ in texts]
    scores, num_cut = network(images, texts * 2)
    cosines = expected["image_embeds"][[0, 2]] @ expected["text_embeds"].T
    np.testing.assert_allclose(scores, 100 * np.maximum(cosines, 0).ravel(), rtol=0, atol=1e-3)
    assert num_cut == 0 and (cosines < 0).any()
    assert network(images[:12], ["w1 " * 23] * 12)[1] == 12
