"""Tables of names for `weights.name_map`: the networks that evaluation measures images with.

A table is (prefix of our names, prefix of theirs, rows of both below the prefix). Inception has the names of
torchvision, which pytorch-fid keeps; CLIP has those of transformers' CLIPModel.
"""

_INCEPTION_ROWS = (
    ("conv", "conv"),
    ("norm/mean", "bn.running_mean"),
    ("norm/variance", "bn.running_var"),
    ("norm", "bn"),
)
_INCEPTION = (
    ("", "", (("fc", "fc"),)),
    *(
        (
            "",
            "",
            (
                (f"conv_{{b}}/{ours}", f"Conv2d_{{b}}.{theirs}"),
                (f"mixed_{{b}}/{{branch}}/{ours}", f"Mixed_{{b}}.{{branch}}.{theirs}"),
            ),
        )
        for ours, theirs in _INCEPTION_ROWS
    ),
)
_CLIP_BLOCK_ROWS = (
    ("layers/attention_norm", "encoder.layers.{l}.layer_norm1"),
    ("layers/o_proj", "encoder.layers.{l}.self_attn.out_proj"),
    ("layers/mlp_norm", "encoder.layers.{l}.layer_norm2"),
    ("layers/{qkv}_proj", "encoder.layers.{l}.self_attn.{qkv}_proj"),
    ("layers/{fc}", "encoder.layers.{l}.mlp.{fc}"),
    ("pos_embed", "embeddings.position_embedding.weight"),
)
_CLIP = (
    (
        "vision/",
        "vision_model.",
        (
            ("class_embed", "embeddings.class_embedding"),
            ("patch_embed", "embeddings.patch_embedding"),
            ("pre_norm", "pre_layrnorm"),  # spelled so in transformers
            ("norm", "post_layernorm"),
            *_CLIP_BLOCK_ROWS,
        ),
    ),
    (
        "text/",
        "text_model.",
        (
            ("token_embed", "embeddings.token_embedding.weight"),
            ("norm", "final_layer_norm"),
            *_CLIP_BLOCK_ROWS,
        ),
    ),
    (
        "",
        "",
        (
            ("vision_projection", "visual_projection"),
            ("text_projection", "text_projection"),
            ("logit_scale", "logit_scale"),
        ),
    ),
)
METRIC_TABLES = (*_INCEPTION, *_CLIP)
