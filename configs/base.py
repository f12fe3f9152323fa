"""The fields that all runs share, with their defaults.

Comments name the source of a value: a table or section of Janus (arXiv 2410.13848), which also holds for Janus-Pro
(arXiv 2501.17811) unless that paper is named. "Not stated" marks what the papers leave open.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference


def base_config(name: str, model: str) -> ConfigDict:
    """A complete config. The file of a run overrides fields and locks it."""
    return ConfigDict(
        {
            "name": name,  # name of the run in logs
            "model": model,  # architecture: a key of janus_jax.PRESETS
            "seed": 0,
            "dtype": "bfloat16",  # of compute; parameters, norms, softmax and losses stay float32 (not stated)
            "remat": "full",  # activations kept for the backward pass: a key of models.scan_layers.REMAT_POLICIES
            "attention": "auto",  # backend: a key of janus_jax.ops.attention.BACKENDS; "auto" is the fastest that fits
            "init": {
                # Folders that the run starts from. A part replaces that of the checkpoint; parameters that none of
                # them holds are initialised at random.
                "checkpoint": "",  # whole model: a training workdir, or a folder of ours, Hugging Face or DeepSeek
                "siglip": "",  # SiglipModel or SiglipVisionModel of transformers
                "llm": "",  # LlamaForCausalLM of transformers, e.g. DeepSeek-LLM
                "vq": "",  # vq_ds16 of LlamaGen, or an image tokenizer trained here
                "vae": "",  # JanusFlow: VAE whose latents the model learns, AutoencoderKL of diffusers or ours
            },
            # Rules (regular expression of parameter paths, whether they are trained). The first match decides; every
            # parameter must match one.
            "trainable": ((".*", True),),
            "train": {
                "batch_size": 256,  # rows per step in all devices; packed rows for Janus (rows or samples: not stated)
                "micro_batches": 1,  # parts in which a device does its rows, one after another: less memory, same step
                # The papers state these for each stage (Janus, Table 1; Janus-Pro, Table 2). The defaults are for runs
                # of your own, and our choice.
                "num_steps": 20_000,
                "learning_rate": 1e-4,
                "schedule": "constant",  # or "cosine"
                "final_fraction": 0.0,  # learning rate at the end of "cosine", as a fraction of the peak (not stated)
                "warmup_steps": 0,
                "weight_decay": 0.0,  # Janus, Table 1, stages I and II; Janus-Pro, Table 2, all stages
                "decay_pattern": ".*/kernel",  # regular expression of the parameters that are decayed (not stated)
                "b1": 0.9,  # Janus, Table 1; Janus-Pro, Table 2
                "b2": 0.95,  # Janus, Table 1; Janus-Pro, Table 2
                "eps": 1e-8,  # not stated
                "clip_norm": 1.0,  # Janus, Table 1; Janus-Pro, Table 2
                # Decay of an exponential average of the trained parameters; 0 keeps no average (Janus and Janus-Pro
                # mention none).
                "ema": 0.0,
            },
            "loss": {
                # "tokens": mean over all supervised tokens; "tasks": mean over text tokens plus mean over image tokens
                # (not stated).
                "normalization": "tokens",
                "chunk_size": 1024,  # tokens per device whose logits are in memory at a time
                # Whether to skip the logits of chunks without supervised tokens. This saves work where answers are
                # few, but the time of a step then depends on the data, and launch.compile_check cannot predict it.
                "skip_unsupervised": False,
                "z_loss": 0.0,  # weight of the squared log-partition of both heads (not stated)
            },
            "data": {
                "tokenizer": "",  # path of a tokenizer.json
                # Glob patterns of ArrayRecord files, by task. A source of a task weighs as much as it has records, or
                # as much as (pattern, weight) says.
                "sources": {"understand": (), "text": (), "generate": ()},
                # Shares of the tasks. A share or weight may be ((first step, weight), ...), which changes it during the
                # run.
                "ratio": ratio(1.0, 1.0, 1.0),
                "ratio_unit": "samples",  # unit that the ratio counts: "samples", "tokens" or "rows" (not stated)
                "row_length": 4096,  # tokens per packed row (Janus, section 4.1; Janus-Pro, Table 1)
                "und_slots": 7,  # most understanding images per row: 7 * 578 tokens fill a row (not stated)
                "gen_slots": 7,  # most images to generate per row
                "packing_bins": 6,  # rows of a logical shard that are filled at the same time
                "supervision": "all",  # text that carries loss: "all" (Janus, section 3.3) or "answers"
                "drop_condition": 0.1,  # how often a caption is dropped, for guidance (Janus, footnote 2)
                "first_sentence": 0.0,  # how often a caption is cut to its first sentence (`data.sample_builder`)
                # Crop of images to generate and of the image tokenizer's (`data.images.Crop`). Janus, section 4.2,
                # crops the long side; where is not stated.
                "crop": {"random": False, "max_zoom": 1.0, "flip": False},
                "stored_codes": False,  # whether VQ codes come from the records instead of from pixels in the step
                "held_out": 0,  # records at the end of each source that are never trained on
                "max_drop_rate": 0.1,  # largest fraction of bad samples of a source; more end the run
                "num_shards": 8,  # logical shards of the stream: a multiple of hosts times workers
                "workers": 4,  # worker processes per host that decode and pack; 0 takes a thread instead
            },
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "checkpoint": {"every_steps": 1000, "keep": 2},
            "log_every": 50,  # steps between two lines of metrics
            # Losses, accuracies and perplexities of held-out records (`data.held_out`), the same rows each time.
            "validate": {
                "every_steps": 0,  # steps between two evaluations; 0, or data.held_out=0: never
                "num_rows": 64,  # rows evaluated, which are read in batches of train.batch_size
            },
            # Images and answers that the run generates from the prompts, into TensorBoard and WORKDIR/samples.
            "sample": {
                "every_steps": 0,  # steps between two times; 0: never
                "num_images": 4,  # images per prompt
                "prompts": (),  # captions to generate images of
            },
            "profile": {"first_step": 0, "steps": 0},  # steps to record into WORKDIR/profile; leave out the first
        },
        convert_dict=True,
    )


def ratio(understand: Any, text: Any, generate: Any) -> ConfigDict:
    """Shares of the tasks. Each takes a number or a schedule, also on the command line."""
    shares = {"understand": understand, "text": text, "generate": generate}
    return ConfigDict({task: FieldReference(share, field_type=object) for task, share in shares.items()})


def lock(config: ConfigDict) -> ConfigDict:
    """Locks the config: no field can be added any more, so a misspelt --config.x is an error."""
    config.lock()
    return config
