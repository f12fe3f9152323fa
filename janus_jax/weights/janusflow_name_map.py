"""Tables of names for `weights.name_map`: JanusFlow in DeepSeek's code, and its VAE in diffusers.

A table is (prefix of our names, prefix of theirs, rows of both below the prefix). SigLIP and the language model have
the rows of Janus.
"""

_CONVNEXT_ROWS = (
    ("block_{i}/depthwise", "mid_block.res_blocks.{i}.depthwise"),
    ("block_{i}/norm", "mid_block.res_blocks.{i}.norm"),
    ("block_{i}/expand", "mid_block.res_blocks.{i}.channelwise_linear_1"),
    ("block_{i}/response_norm", "mid_block.res_blocks.{i}.channelwise_norm[channels]"),
    ("block_{i}/contract", "mid_block.res_blocks.{i}.channelwise_linear_2"),
    ("block_{i}/film", "mid_block.res_blocks.{i}.cond_embeds_mapper"),
)
_JANUSFLOW = (
    (
        "",
        "",
        (
            ("begin_of_understanding", "beg_of_und_embed"),
            ("aligner", "vision_und_enc_aligner"),
            ("gen_aligner", "vision_gen_enc_aligner"),
            ("gen_decoder_norm", "vision_gen_dec_aligner_norm"),
            ("gen_decoder_aligner", "vision_gen_dec_aligner"),
        ),
    ),
    (
        "gen_encoder/",
        "vision_gen_enc_model.",
        (
            ("time_embed/{linear}", "time_embed.{linear}"),
            ("patch_embed", "in_conv"),
            *_CONVNEXT_ROWS,
        ),
    ),
    (
        "gen_decoder/",
        "vision_gen_dec_model.",
        (
            ("input_norm", "input_norm"),
            *_CONVNEXT_ROWS,
            ("unpatch_norm", "out_convs.0.norm"),
            ("unpatch", "out_convs.0.unpatch_conv"),
        ),
    ),
)
_LEVEL_ROWS = (
    ("{i}_block_{j}/shortcut", "{i}.resnets.{j}.conv_shortcut"),
    ("{i}_block_{j}/{m}", "{i}.resnets.{j}.{m}"),
    ("{i}_downsample", "{i}.downsamplers.0.conv"),
    ("{i}_upsample", "{i}.upsamplers.0.conv"),
)
_VAE = (
    ("encoder/down_", "encoder.down_blocks.", _LEVEL_ROWS),
    ("decoder/up_", "decoder.up_blocks.", _LEVEL_ROWS),
    (
        "",
        "",
        (
            ("quant_conv", "quant_conv"),
            ("post_quant_conv", "post_quant_conv"),
            ("{side}/mid/block_1/{m}", "{side}.mid_block.resnets.0.{m}"),
            ("{side}/mid/attn_1/norm", "{side}.mid_block.attentions.0.group_norm"),
            ("{side}/mid/attn_1/proj_out", "{side}.mid_block.attentions.0.to_out.0[linear]"),
            ("{side}/mid/attn_1/{m}", "{side}.mid_block.attentions.0.to_{m}[linear]"),  # q, k, v
            ("{side}/mid/block_2/{m}", "{side}.mid_block.resnets.1.{m}"),
            ("{side}/norm_out", "{side}.conv_norm_out"),
            ("{side}/{conv}", "{side}.{conv}"),  # conv_in, conv_out
        ),
    ),
)
FLOW_TABLES = (*_JANUSFLOW, *_VAE)
