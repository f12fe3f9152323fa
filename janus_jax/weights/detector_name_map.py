"""Tables of names for `weights.name_map`: Mask2Former in transformers, and in mmdet 2.x, whose weights GenEval uses.

A table is (prefix of our names, prefix in transformers, prefix in mmdet, rows of all three below the prefixes).
"""

_SWIN = (
    "swin/",
    "model.pixel_level_module.encoder.",
    "backbone.",
    (
        ("patch_embed", "embeddings.patch_embeddings.projection", "patch_embed.projection"),
        ("patch_norm", "embeddings.norm", "patch_embed.norm"),
        ("norm_{k}", "hidden_states_norms.stage{k}", "norm{k-1}"),
        *(
            (
                f"stage_{{s}}_block_{{i}}/{ours}",
                f"encoder.layers.{{s}}.blocks.{{i}}.{hf}",
                f"stages.{{s}}.blocks.{{i}}.{mm}",
            )
            for ours, hf, mm in (
                ("attention_norm", "layernorm_before", "norm1"),
                ("q_proj", "attention.self.query", "attn.w_msa.qkv[0/3]"),
                ("k_proj", "attention.self.key", "attn.w_msa.qkv[1/3]"),
                ("v_proj", "attention.self.value", "attn.w_msa.qkv[2/3]"),
                ("o_proj", "attention.output.dense", "attn.w_msa.proj"),
                (
                    "position_bias",
                    "attention.self.relative_position_bias_table",
                    "attn.w_msa.relative_position_bias_table",
                ),
                ("mlp_norm", "layernorm_after", "norm2"),
                ("fc1", "intermediate.dense", "ffn.layers.0.0"),
                ("fc2", "output.dense", "ffn.layers.1"),
            )
        ),
        ("stage_{s}_merge/{m}", "encoder.layers.{s}.downsample.{m}", "stages.{s}.downsample.{m}[unfold]"),
    ),
)
_PIXEL_DECODER = (
    "pixel_decoder/",
    "model.pixel_level_module.decoder.",
    "panoptic_head.pixel_decoder.",
    (
        ("level_embed", "level_embed", "level_encoding.weight"),
        ("input_{i}/conv", "input_projections.{i}.0", "input_convs.{i}.conv"),
        ("input_{i}/norm", "input_projections.{i}.1", "input_convs.{i}.gn"),
        ("encoder_{i}/attention_norm", "encoder.layers.{i}.self_attn_layer_norm", "encoder.layers.{i}.norms.0"),
        ("encoder_{i}/mlp_norm", "encoder.layers.{i}.final_layer_norm", "encoder.layers.{i}.norms.1"),
        ("encoder_{i}/fc1", "encoder.layers.{i}.fc1", "encoder.layers.{i}.ffns.0.layers.0.0"),
        ("encoder_{i}/fc2", "encoder.layers.{i}.fc2", "encoder.layers.{i}.ffns.0.layers.1"),
        ("encoder_{i}/{m}", "encoder.layers.{i}.self_attn.{m}", "encoder.layers.{i}.attentions.0.{m}"),
        ("lateral/conv", "adapter_1.0", "lateral_convs.0.conv"),
        ("lateral/norm", "adapter_1.1", "lateral_convs.0.gn"),
        ("output/conv", "layer_1.0", "output_convs.0.conv"),
        ("output/norm", "layer_1.1", "output_convs.0.gn"),
        ("mask_projection", "mask_projection", "mask_feature"),
    ),
)
# The fused projections of PyTorch's own attention are named "in_proj_weight" in the files, not "in_proj.weight".
_DECODER = (
    "decoder_",
    "model.transformer_module.decoder.layers.",
    "panoptic_head.transformer_decoder.layers.",
    (
        ("{i}/cross_attention/q_proj", "{i}.cross_attn.in_proj[0/3]", "{i}.attentions.0.attn.in_proj[0/3]"),
        ("{i}/cross_attention/k_proj", "{i}.cross_attn.in_proj[1/3]", "{i}.attentions.0.attn.in_proj[1/3]"),
        ("{i}/cross_attention/v_proj", "{i}.cross_attn.in_proj[2/3]", "{i}.attentions.0.attn.in_proj[2/3]"),
        ("{i}/cross_attention/o_proj", "{i}.cross_attn.out_proj", "{i}.attentions.0.attn.out_proj"),
        ("{i}/self_attention/q_proj", "{i}.self_attn.q_proj", "{i}.attentions.1.attn.in_proj[0/3]"),
        ("{i}/self_attention/k_proj", "{i}.self_attn.k_proj", "{i}.attentions.1.attn.in_proj[1/3]"),
        ("{i}/self_attention/v_proj", "{i}.self_attn.v_proj", "{i}.attentions.1.attn.in_proj[2/3]"),
        ("{i}/self_attention/o_proj", "{i}.self_attn.out_proj", "{i}.attentions.1.attn.out_proj"),
        ("{i}/cross_norm", "{i}.cross_attn_layer_norm", "{i}.norms.0"),
        ("{i}/self_norm", "{i}.self_attn_layer_norm", "{i}.norms.1"),
        ("{i}/mlp_norm", "{i}.final_layer_norm", "{i}.norms.2"),
        ("{i}/fc1", "{i}.fc1", "{i}.ffns.0.layers.0.0"),
        ("{i}/fc2", "{i}.fc2", "{i}.ffns.0.layers.1"),
    ),
)
_QUERIES = (
    "",
    "model.transformer_module.",
    "panoptic_head.",
    (
        ("level_embed", "level_embed.weight", "level_embed.weight"),
        ("query_features", "queries_features.weight", "query_feat.weight"),
        ("query_places", "queries_embedder.weight", "query_embed.weight"),
        ("query_norm", "decoder.layernorm", "transformer_decoder.post_norm"),
        ("mask_embed_{k}", "decoder.mask_predictor.mask_embedder.{k}.0", "mask_embed.{2k}"),
    ),
)
_CLASSES = ("", "", "panoptic_head.", (("class_predictor", "class_predictor", "cls_embed"),))
DETECTOR_TABLES = (_SWIN, _PIXEL_DECODER, _DECODER, _QUERIES, _CLASSES)
