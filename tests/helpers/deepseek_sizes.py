"""DeepSeek's layout for models of any size, which tests of reading need. The original code builds some sizes only.

So `deepseek_config` and `flow_config` refuse small models. Their content is made here of that of a model which they
accept, as an early version of this project wrote it.
"""

import contextlib
import dataclasses
from unittest import mock

from janus_jax.models.presets import JANUS_PRO_1B, JANUSFLOW_1P3B, VQ_16
from janus_jax.weights import deepseek_config, janusflow_config

_janus, _flow = deepseek_config.deepseek_config, janusflow_config.flow_config


def janus_content(config, dtype_name="float32"):
    """The content of config.json of a Janus whose SigLIP and VQ have any size."""
    siglip, vq = config.siglip, config.vq
    content = _janus(dataclasses.replace(config, siglip=JANUS_PRO_1B.siglip, vq=VQ_16), dtype_name)
    content["vision_config"]["params"] = _tower(siglip)
    content["aligner_config"]["params"]["input_dim"] = siglip.width
    content["gen_vision_config"]["params"] = {"image_token_size": vq.num_codes, "n_embed": vq.code_dim}
    content["gen_aligner_config"]["params"]["input_dim"] = vq.code_dim
    content["gen_head_config"]["params"]["image_token_size"] = vq.num_codes
    return content


def flow_content(config, dtype_name="float32"):
    """The content of config.json of a JanusFlow of any size."""
    uvit, released = config.uvit, JANUSFLOW_1P3B
    llama = dataclasses.replace(config.llama, width=released.llama.width)
    wide = dataclasses.replace(
        uvit, width=released.uvit.width, time_width=llama.width, latent_size=released.uvit.grid * uvit.patch_size
    )
    content = _flow(dataclasses.replace(config, llama=llama, siglip=released.siglip, uvit=wide), dtype_name)
    content["vision_und_enc_config"]["params"] = _tower(config.siglip)
    sizes = {"block_out_channels": [uvit.width], "hidden_size": uvit.time_width}
    content["vision_gen_enc_config"]["params"] |= sizes
    content["vision_gen_dec_config"]["params"] |= sizes | {"in_channels": uvit.width}
    content["language_config"]["hidden_size"] = config.llama.width
    return content


@contextlib.contextmanager
def any_size():
    """Within it, `write_model` writes models of any size in DeepSeek's layout."""
    with (
        mock.patch.object(deepseek_config, "deepseek_config", janus_content),
        mock.patch.object(janusflow_config, "flow_config", flow_content),
    ):
        yield


def _tower(siglip):
    return {"model_name": "siglip", "heads": siglip.num_heads, "image_size": siglip.image_size, "select_layer": -1}
