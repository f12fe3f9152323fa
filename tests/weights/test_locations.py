"""A folder that is not there: what the one line says."""

import pytest

from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights.locations import existing_path
from janus_jax.weights.open_model import open_model
from janus_jax.weights.pretrained_parts import PARTS, open_part
from janus_jax.weights.vae import load_vae


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ai/Janus-Pro-1B",
        "deepseek-ai/Janus-Pro-1B/",
        "huggingface.co/deepseek-ai/Janus-Pro-1B",
        "https://huggingface.co/deepseek-ai/Janus-Pro-1B",
        "https://huggingface.co/deepseek-ai/Janus-Pro-1B/tree/main",
        "hf://deepseek-ai/Janus-Pro-1B",
    ],
)
def test_the_name_of_a_model_on_the_hub_is_told_how_to_fetch_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "hf download deepseek-ai/Janus-Pro-1B --local-dir=Janus-Pro-1B"
    opens = [open_model, load_vae, *(lambda path, part=part: open_part(part, path, JANUS_PRO_TINY) for part in PARTS)]
    for open_ in opens:
        with pytest.raises(UserError) as error:
            open_(name)
        assert str(error.value).startswith(f"{name}: no such folder") and f"`{command}`" in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Janus-Pro-1b", "did you mean Janus-Pro-1B?"),
        ("runs/stage_3", "did you mean runs/stage3?"),
        ("runs/other", "`hf download NAME --local-dir=FOLDER`"),
        ("a/b/c", "`hf download NAME --local-dir=FOLDER`"),
        ("https://example.com/model", "`hf download NAME --local-dir=FOLDER`"),
    ],
)
def test_a_mistyped_path_is_told_its_neighbour(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("Janus-Pro-1B", "runs/stage3"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        open_model(name)
    assert str(error.value).startswith(f"{name}: ") and said in str(error.value)


def test_a_file_is_not_taken_for_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert existing_path(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=rf"{tmp_path}/model.safetensors: a file, expected the model folder"):
        open_model(tmp_path / "model.safetensors")
