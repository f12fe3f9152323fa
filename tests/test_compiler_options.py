import pytest

from janus_jax.compiler_options import (
    CPU_ADAPTERS,
    CPU_DECODING,
    CPU_SMALL_BUFFERS,
    CPU_SMALL_CONVOLUTIONS,
    TPU_IMAGE_LOOP,
    TRAINING,
    compiler_options,
)


@pytest.mark.parametrize(
    ("name", "kind"), [("TPU v5e", "TPU v5 lite"), ("TPU v5p", "TPU v5"), ("TPU v6e", "TPU v6 lite")]
)
def test_the_training_step_has_the_options_of_its_device_by_either_name(name, kind):
    options = compiler_options("train_step", device_kind=name)
    assert options == compiler_options("train_step", device_kind=kind) == TRAINING[kind] != {}


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v5 lite", "TPU v6 lite"])
def test_only_an_offloaded_all_reduce_is_taken_from_the_step_of_a_tokenizer(kind):
    usual, tokenizer = (compiler_options(name, device_kind=kind) for name in ("train_step", "tokenizer_step"))
    assert tokenizer == compiler_options("small_tokenizer_step", device_kind=kind)
    assert usual.keys() == tokenizer.keys()
    name = "xla_tpu_enable_sparse_core_collective_offload_all_reduce"
    assert [key for key in usual if usual[key] != tokenizer[key]] == [name] * (name in usual)


def test_adapters_and_tokenizers_have_options_of_their_own_on_a_cpu():
    assert compiler_options("adapter_step", device_kind="cpu") == CPU_ADAPTERS
    assert compiler_options("tokenizer_step", device_kind="cpu") == CPU_SMALL_CONVOLUTIONS
    small = compiler_options("small_tokenizer_step", device_kind="cpu")
    assert small == {**CPU_SMALL_CONVOLUTIONS, **CPU_SMALL_BUFFERS}
    assert compiler_options("adapter_step", device_kind="TPU v5") == TRAINING["TPU v5"]


@pytest.mark.parametrize("kind", ["cpu", "TPU v4", "NVIDIA H100 80GB HBM3"])
def test_the_training_step_has_no_options_on_other_devices(kind):
    assert compiler_options("train_step", device_kind=kind) == {}


def test_only_the_image_loop_on_a_tpu_has_options_besides_those_of_a_cpu():
    for program in ("decode", "image_loop"):
        for platform in ("cpu", "gpu", None):
            assert compiler_options(program, platform=platform) == CPU_DECODING
    assert compiler_options("decode", platform="tpu") == CPU_DECODING
    assert compiler_options("image_loop", platform="tpu") == CPU_DECODING | TPU_IMAGE_LOOP


def test_an_unknown_program_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="program='draw'.*image_loop"):
        compiler_options("draw")
