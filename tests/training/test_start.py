"""What the start of a run says before the first step."""

import dataclasses

import pytest

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.models.params import init_params
from janus_jax.models.presets import PRESETS
from janus_jax.training.start import open_run
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import MICRO_JANUS, MICRO_VQ, janus_experiment


@pytest.mark.parametrize("prompts", [(), ("a cat",)])
def test_samples_without_prompts_are_named(data_folder, tmp_path, capsys, prompts):
    config = janus_experiment(data_folder)
    config.sample.update(every_steps=2, prompts=prompts)
    open_run(config, tmp_path / "run")
    assert ("sample.every_steps=2, but sample.prompts is empty" in capsys.readouterr().out) == (not prompts)


def test_a_run_that_starts_from_nothing_says_so_and_one_that_starts_from_a_part_does_not(data_folder, tmp_path, capsys):
    config = janus_experiment(data_folder)
    assert not config.init.required
    open_run(config, tmp_path / "random")
    assert "WARNING: all parameters are random" in capsys.readouterr().out
    save_params(tmp_path / "vq", MICRO_VQ, init_params(MICRO_VQ, seed=0))
    config.init.vq = str(tmp_path / "vq")
    config.init.required = True
    open_run(config, tmp_path / "part")
    assert "WARNING" not in capsys.readouterr().out


def test_a_tokenizer_much_smaller_than_the_vocabulary_is_named_with_both_sizes(
    data_folder, tmp_path, capsys, monkeypatch
):
    config = janus_experiment(data_folder)
    open_run(config, tmp_path / "fits")
    assert "data.tokenizer has" not in capsys.readouterr().out
    large = dataclasses.replace(MICRO_JANUS, llama=dataclasses.replace(MICRO_JANUS.llama, vocab_size=1024))
    monkeypatch.setitem(PRESETS, "micro_janus", large)
    open_run(config, tmp_path / "small")
    size = Tokenizer.from_file(config.data.tokenizer).vocab_size
    assert f"data.tokenizer has {size} tokens, but the model embeds 1,024" in capsys.readouterr().out
