"""A mistake in a run is one UserError that names it, before any step and before any compilation."""

import dataclasses
import shutil

import pytest
from etils import epath

from janus_jax.data.prompts import STYLES
from janus_jax.data.tokenizer import Tokenizer, train_tokenizer
from janus_jax.errors import UserError
from janus_jax.models.params import init_params
from janus_jax.training import loop, plan
from janus_jax.training.architecture import model_config
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.freezing import trainable_mask
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.setup import open_stream, open_tokenizer
from janus_jax.training.start import open_run
from janus_jax.training.train_state import create_state
from janus_jax.weights.native import read_architecture, save_params, write_architecture
from janus_jax.weights.vae import load_vae
from tests.helpers.tiny_runs import MICRO_JANUS, MICRO_VAE, MICRO_VQ, flow_experiment, janus_experiment, vq_experiment


@pytest.fixture(autouse=True)
def no_step(monkeypatch):
    """Makes any training step a failure, since its compilation takes minutes at real size."""

    def make_step(loss_fn, *args):
        def step(state, batch):
            pytest.fail("a training step was run")

        return step

    monkeypatch.setattr(plan, "make_train_step", make_step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "janus_2b"}, r"model='janus_2b'"),
        ({"dtype": "float16"}, r"dtype='float16'"),
        ({"remat": "some"}, r"remat='some'"),
        ({"trainable": (("llm/.*", True),)}, r"no rule matches parameter"),
        ({"train.schedule": "linear"}, r"train\.schedule='linear'"),
        ({"train.batch_size": 3}, r"train\.batch_size=3 .*data\.num_shards=2"),
        ({"train.micro_batches": 3}, r"train\.micro_batches=3 does not divide"),
        ({"loss.normalization": "samples"}, r"loss\.normalization='samples'"),
        ({"data.supervision": "questions"}, r"data\.supervision='questions'"),
        ({"data.tokenizer": ""}, r"data\.tokenizer"),
        ({"data.tokenizer": "/nowhere/tokenizer.json"}, r"/nowhere/tokenizer\.json"),
        ({"data.sources.text": ("/nowhere/*.array_record",)}, r"data\.sources\.text.*/nowhere/\*\.array_record"),
        ({"data.num_shards": 4000, "train.batch_size": 4000}, r"data\.num_shards=4000"),
        ({"mesh.data": 2, "mesh.fsdp": 3}, r"mesh\.data=2, mesh\.fsdp=3, mesh\.tensor=1"),
        ({"init.checkpoint": "/nowhere"}, r"/nowhere"),
        ({"init.vq": "/nowhere"}, r"/nowhere"),
        ({"init.required": True}, r"init\.checkpoint is empty.*config\.init\.required=False starts from random"),
        # Numbers that cannot work and would otherwise end in a traceback.
        ({"log_every": 0}, r"log_every=0"),
        ({"checkpoint.every_steps": 0}, r"checkpoint\.every_steps=0"),
        ({"loss.chunk_size": 0}, r"loss\.chunk_size=0"),
        ({"train.batch_size": 0}, r"train\.batch_size=0"),
        ({"data.packing_bins": 0}, r"data\.packing_bins=0"),
        ({"data.ratio": {"understand": 0.0, "text": 0.0, "generate": 0.0}}, r"data\.ratio"),
        ({"data.ratio.text": -1.0}, r"data\.ratio"),
        ({"data.drop_condition": 1.5}, r"data\.drop_condition=1\.5"),
        ({"trainable": (("llm/(", True), (".*", True))}, r"llm/\("),
        ({"train.decay_pattern": "*"}, r"'\*' is not a regular expression"),
        ({"train.learning_rate": -1e-3}, r"train\.learning_rate=-0\.001"),
        ({"train.clip_norm": 0.0}, r"train\.clip_norm=0"),
        ({"train.b2": float("nan")}, r"train\.b2=nan"),
        ({"train.warmup_steps": -1}, r"train\.warmup_steps=-1"),
        ({"train.b1": 1.0}, r"train\.b1=1\.0, expected 0 to 0\.999999"),
        ({"train.b2": -0.1}, r"train\.b2=-0\.1"),
        ({"train.eps": 0.0}, r"train\.eps=0\.0, expected 1e-30 to 1"),
        ({"train.weight_decay": -0.1}, r"train\.weight_decay=-0\.1"),
        ({"loss.z_loss": -1e-4}, r"loss\.z_loss=-0\.0001, expected 0 to 1000"),
        ({"trainable": ("ab", (".*", True))}, r"trainable: 'ab', expected \(regular expression, True or False\)"),
        ({"seed": 2**32}, r"seed=4294967296"),
        ({"validate.num_rows": 0}, r"validate\.num_rows=0"),
        ({"sample.prompts": ("a cat", 2)}, r"sample\.prompts: 2"),
        ({"validate.every_steps": 1, "data.held_out": 1}, r"data\.held_out=1\b.*data\.num_shards=2"),
        ({"data.gen_slots": 0}, r"data\.ratio\.generate=1\.0.*no image slot"),
        ({"data.row_length": 129}, r"data\.row_length=129.*context of 128"),
        ({"data.workers": 3}, r"data\.workers=3 must divide"),
        ({"data.held_out": 10**6}, r"data\.held_out=1000000"),
        ({"data.ratio_unit": "bytes"}, r"data\.ratio_unit='bytes'"),
        (
            {"data.sources.text": (("a", "b", "c"),)},
            r"data\.sources\.text: \('a', 'b', 'c'\), expected a tuple of globs",
        ),
        ({"data.sources.text": ("a", 2.0)}, r"data\.sources\.text: 2\.0, expected a tuple of globs"),
        ({"data.sources.text": (("a", "b"),)}, r"data\.sources\.text: \('a', 'b'\), expected a tuple of globs"),
        ({"data.sources.text": (("a", 0.0), ("b", ((0, 0.0),)))}, r"data\.sources\.text=.*expected a weight above 0"),
        ({"data.stored_codes": True, "data.crop.random": True}, r"data\.crop=.*data\.stored_codes are of the centre"),
        ({"data.stored_codes": True, "data.crop.max_zoom": 1.25}, r"data\.crop=.*data\.stored_codes are of the centre"),
        ({"data.sources.text": ()}, r"data\.sources\.text is empty"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_field_is_named_with_its_value(data_folder, tmp_path, changes, message):
    config = janus_experiment(data_folder)
    for field, value in changes.items():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "run")
    # Nothing that would refuse the corrected config.
    assert not (tmp_path / "run" / "model.json").exists() and not (tmp_path / "run" / "config.json").exists()


def test_tokenizer_larger_than_the_vocabulary_is_refused_with_both_sizes(data_folder, tmp_path):
    texts = [f"word{i} " * 3 for i in range(400)]
    tokenizer = train_tokenizer(texts, vocab_size=500, extra_special_tokens=STYLES["janus_pro_tiny"][:2])
    tokenizer.save(tmp_path / "large.json")
    config = janus_experiment(data_folder)
    config.data.tokenizer = str(tmp_path / "large.json")
    assert tokenizer.vocab_size > 384
    with pytest.raises(UserError, match=rf"large\.json': {tokenizer.vocab_size} tokens.*only 384"):
        loop.train(config, tmp_path / "run")


def test_a_workdir_with_another_tokenizer_is_refused_and_keeps_its_own(data_folder, tmp_path):
    config = janus_experiment(data_folder)
    checkpoint(tmp_path, config)
    other = train_tokenizer(["other words"], vocab_size=300, extra_special_tokens=STYLES["janus_pro_tiny"][:2])
    other.save(tmp_path / "tokenizer.json")
    before = (tmp_path / "tokenizer.json").read_text()
    with pytest.raises(UserError, match=rf"{tmp_path}/tokenizer\.json: another vocabulary.*config\.data\.tokenizer"):
        loop.train(config, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == before


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "params"])
def test_a_workdir_that_is_a_model_is_refused_and_keeps_its_files(data_folder, tmp_path, name):
    (tmp_path / name).write_text("of a model")
    with pytest.raises(UserError, match=rf"--workdir={tmp_path}: holds {name} of a model"):
        loop.train(janus_experiment(data_folder), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "of a model"}


def test_a_start_without_a_checkpoint_leaves_its_folder_to_another_model(data_folder, tmp_path):
    """As after a kill: another architecture, another tokenizer, and a folder of a VAE in which nothing is yet."""
    write_architecture(tmp_path, MICRO_VQ)
    (tmp_path / "config.json").write_text("{}")
    train_tokenizer(["other words"], vocab_size=300).save(tmp_path / "tokenizer.json")
    (tmp_path / "vae").mkdir()
    config = flow_experiment(data_folder)
    open_run(config, tmp_path)
    assert read_architecture(tmp_path) == model_config(config)
    assert (
        Tokenizer.from_file(tmp_path / "tokenizer.json").fingerprint()
        == open_tokenizer(config, MICRO_JANUS).fingerprint()
    )
    assert load_vae(tmp_path / "vae")[0] == MICRO_VAE


def test_workdir_below_a_file_is_refused_by_its_flag(data_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*/file/run: cannot be written"):
        loop.train(vq_experiment(data_folder), tmp_path / "file" / "run")


def test_workdir_of_another_architecture_is_refused_with_the_difference(data_folder, tmp_path):
    config = janus_experiment(data_folder)
    checkpoint(tmp_path, config)
    write_architecture(tmp_path, MICRO_VQ)
    with pytest.raises(UserError, match=rf"{tmp_path}: .*another architecture.*VQConfig.*JanusConfig"):
        loop.train(config, tmp_path)


@pytest.mark.parametrize(
    ("field", "message"), [("checkpoint", "VQConfig, expected a Janus model"), ("vq", "another architecture")]
)
def test_starting_point_of_another_architecture_is_refused_by_its_field(data_folder, tmp_path, field, message):
    other = {"checkpoint": MICRO_VQ, "vq": MICRO_JANUS}[field]
    save_params(tmp_path / "start", other, init_params(other, seed=0))
    config = janus_experiment(data_folder)
    config.init[field] = str(tmp_path / "start")
    with pytest.raises(UserError, match=rf"init\.{field}='{tmp_path}/start'.*{message}"):
        loop.train(config, tmp_path / "run")


def test_starting_point_of_another_tokenizer_is_refused(data_folder, tmp_path):
    other = train_tokenizer(["other words"], vocab_size=300, extra_special_tokens=STYLES["janus_pro_tiny"][:2])
    save_params(tmp_path / "start", MICRO_JANUS, init_params(MICRO_JANUS, seed=0))
    other.save(tmp_path / "start" / "tokenizer.json")
    config = janus_experiment(data_folder)
    config.init.checkpoint = str(tmp_path / "start")
    with pytest.raises(UserError, match=r"init\.checkpoint=.*tokens with other ids than config\.data\.tokenizer"):
        loop.train(config, tmp_path / "run")


def test_stored_codes_of_another_image_tokenizer_are_refused(data_folder, tmp_path):
    config = janus_experiment(data_folder)
    shutil.copytree(data_folder, tmp_path / "data")
    (tmp_path / "data" / "manifest.json").write_text('{"identity": {"image_tokenizer_sha256": "0123456789abcdef"}}')
    config.data.sources.generate = (f"{tmp_path}/data/generate.array_record",)
    config.data.stored_codes = True
    with pytest.raises(UserError, match=rf"stored_codes: the codes in {tmp_path}/data .* 0123456789ab .*the run's is"):
        loop.train(config, tmp_path / "run")


def checkpoint(workdir, config, rules=None):
    """A checkpoint of step 0 of a run of this config, or with these `trainable` rules."""
    params = init_params(MICRO_JANUS, seed=0)
    mask = trainable_mask(params, rules or config.trainable)
    state = create_state(params, mask, make_optimizer(config.train), config.train.ema > 0)
    stream = open_stream(config, MICRO_JANUS, open_tokenizer(config, MICRO_JANUS))
    checkpoints = Checkpoints(epath.Path(workdir), MICRO_JANUS, keep=1)
    checkpoints.save(state, stream.get_state())
    checkpoints.close()


def test_checkpoint_of_a_stage_that_trained_other_parameters_is_refused(data_folder, tmp_path):
    config = janus_experiment(data_folder)
    checkpoint(tmp_path, config, rules=(("gen_head/.*", True), (".*", False)))
    with pytest.raises(UserError, match=rf"{tmp_path}: checkpoint 0 cannot be restored"):
        loop.train(config, tmp_path)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [(0.9, 0.0, "ema=0, but checkpoint 0 in .* holds an average"), (0.0, 0.9, "ema is above 0, but no checkpoint in")],
)
def test_an_average_neither_ends_nor_begins_by_a_resume(data_folder, tmp_path, before, now, message):
    config = janus_experiment(data_folder)
    config.train.ema = before
    checkpoint(tmp_path, config)
    config.train.ema = now
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path)
    assert (tmp_path / "checkpoints" / "0").exists() and not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.num_shards": 4}, r"data\.num_shards=4 \(was 2\)"),
        (
            {"data.und_slots": 3, "data.row_length": 128},
            r"data\.row_length=128 \(was 96\); data\.und_slots=3 \(was 2\)",
        ),
        ({"data.held_out": 3}, r"data\.sources\.text="),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_resume_with_other_data_settings_is_refused_by_name_with_both_values(data_folder, tmp_path, changes, message):
    config = janus_experiment(data_folder)
    checkpoint(tmp_path, config)
    for field, value in changes.items():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.vae": ""}, r"config\.init\.vae is empty"),
        ({"init.vae": "/nowhere"}, r"/nowhere: no such folder"),
        ({"data.gen_slots": 40}, r"data\.gen_slots=40, but a row has room for 19 images"),
        ({"data.stored_codes": True}, r"JanusFlow learns latents"),
        ({"loss.alignment_layer": 2}, r"loss\.alignment_layer=2"),
        ({"train.ema": 1.0}, r"train\.ema=1"),
        ({"loss.alignment_weight": -1.0}, r"loss\.alignment_weight=-1\.0"),
        ({"loss.alignment_width": 0}, r"loss\.alignment_width=0"),
        ({"loss.time_location": float("nan")}, r"loss\.time_location=nan"),
        ({"loss.time_scale": 0.0}, r"loss\.time_scale=0\.0"),
        ({"init.vq": "/nowhere"}, r"init\.vq='/nowhere'.*JanusFlowConfig"),
    ],
)
def test_mistakes_of_a_flow_run_are_one_line(data_folder, tmp_path, changes, message):
    config = flow_experiment(data_folder)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("field", "value"), [("loss.pixel_weight", -1.0), ("data.image_size", -8)])
def test_mistakes_of_a_run_of_the_image_tokenizer_are_named(data_folder, tmp_path, field, value):
    config = vq_experiment(data_folder)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{field}={value}, expected 0 to"):
        loop.train(config, tmp_path)


def test_a_vae_of_another_kind_is_refused(data_folder, tmp_path):
    other = dataclasses.replace(MICRO_VAE, channel_multipliers=(1, 2))
    save_params(tmp_path / "vae", other, init_params(other, seed=0))
    config = flow_experiment(data_folder)
    config.init.vae = str(tmp_path / "vae")
    with pytest.raises(UserError, match=r"VAE.*\b4\b.*\b8\b.*\b16\b"):
        loop.train(config, tmp_path / "run")
