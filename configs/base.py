"""What all runs have in common. A field that a paper leaves open says so; nothing is hidden in code.

The papers: Janus (arXiv 2410.13848), whose fields Janus-Pro (arXiv 2501.17811) shares unless it is named.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference


def base_config(name: str, model: str) -> ConfigDict:
    """A complete config; runs override fields and lock it."""
    return ConfigDict(
        {
            "name": name,  # shown in logs
            "model": model,  # a key of janus_jax.models.config.PRESETS
            "seed": 0,
            "dtype": "bfloat16",  # compute; parameters, norms, softmax and losses stay float32 (papers: not stated)
            "remat": "full",  # what the backward pass finds: a key of janus_jax.models.scan_layers.REMAT_POLICIES
            "attention": "auto",  # or a key of janus_jax.ops.attention.BACKENDS
            "init": {
                # Folders to start from; what none of them holds is fresh. A part replaces that of the checkpoint.
                "checkpoint": "",  # a whole model: ours (or a workdir), Hugging Face's or DeepSeek's
                "siglip": "",  # transformers' SiglipModel or SiglipVisionModel
                "llm": "",  # transformers' LlamaForCausalLM, e.g. DeepSeek-LLM
                "vq": "",  # LlamaGen's vq_ds16, or an image tokenizer trained here
                "vae": "",  # JanusFlow: the VAE whose latents are learned, diffusers' AutoencoderKL or ours
            },
            "trainable": ((".*", True),),  # ordered (path regex, trainable); every parameter must match
            "train": {
                "batch_size": 256,  # rows per step (packed rows for Janus; papers: rows or samples not stated)
                "micro_batches": 1,  # the rows of a device are done in so many parts: less memory, the same step
                # Of each stage: Janus, Table 1, Janus-Pro, Table 2. Here, for runs of one's own, open choices.
                "num_steps": 20_000,
                "learning_rate": 1e-4,
                "schedule": "constant",  # or "cosine"
                "final_fraction": 0.0,  # of the peak, at the end of "cosine" (papers: not stated)
                "warmup_steps": 0,
                "weight_decay": 0.0,  # Janus, Table 1, stages I and II; Janus-Pro, Table 2, all stages
                "decay_pattern": ".*/kernel",  # which parameters are decayed (papers: not stated)
                "b1": 0.9,  # Janus, Table 1; Janus-Pro, Table 2
                "b2": 0.95,  # Janus, Table 1; Janus-Pro, Table 2
                "eps": 1e-8,  # papers: not stated
                "clip_norm": 1.0,  # Janus, Table 1; Janus-Pro, Table 2
                # Decay of an average of the trained parameters, kept beside them from step 0 on; 0: none (Janus and
                # Janus-Pro mention none).
                "ema": 0.0,
            },
            "loss": {
                "normalization": "tokens",  # or "tasks"; papers: not stated
                "chunk_size": 1024,  # tokens of a device whose logits exist at a time
                # Compute no logits for chunks of tokens without loss: less work where answers are few, but a time
                # that depends on the data, differs between devices, and that launch.compile_check cannot predict.
                "skip_unsupervised": False,
                "z_loss": 0.0,  # weight of log_partition^2 of both heads (papers: not stated)
            },
            "data": {
                "tokenizer": "",  # path of a tokenizer.json
                # Globs of ArrayRecord shards; (glob, weight) to weigh sources of a task other than by their records.
                "sources": {"understand": (), "text": (), "generate": ()},
                # Any weight here may be ((first step, weight), ...): it changes during the run.
                "ratio": ratio(1.0, 1.0, 1.0),
                "ratio_unit": "samples",  # what the ratio counts: "samples", "tokens" or "rows" (papers: not stated)
                "row_length": 4096,  # Janus, section 4.1; Janus-Pro, Table 1
                "und_slots": 7,  # understanding images per row at most: 7 * 578 tokens fill a row (papers: not stated)
                "gen_slots": 7,
                "packing_bins": 6,  # rows of a shard open at a time
                "supervision": "all",  # text that carries loss: "all" (Janus, section 3.3) or "answers"
                "drop_condition": 0.1,  # Janus, footnote 2 (Janus-Pro: not stated)
                "first_sentence": 0.0,  # how often a generation caption is cut to it (`data.sample_builder`)
                # Of generation images and the image tokenizer's; see `data.images.Crop`. Janus, section 4.2, crops the
                # long side; where is not stated.
                "crop": {"random": False, "max_zoom": 1.0, "flip": False},
                "stored_codes": False,  # take VQ codes from the records (prepare_data), not from pixels in the step
                "held_out": 0,  # records at the end of each source that are never trained on
                "max_drop_rate": 0.1,  # bad samples tolerated
                "num_shards": 8,  # logical shards of the stream: a multiple of hosts times workers
                "workers": 4,  # processes that decode and pack; 0: a thread
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
    """Shares of the tasks. Each field takes a number or a schedule, also from the command line."""
    shares = {"understand": understand, "text": text, "generate": generate}
    return ConfigDict({task: FieldReference(share, field_type=object) for task, share in shares.items()})


def lock(config: ConfigDict) -> ConfigDict:
    """No field can be added any more, so that a misspelt --config.x is an error."""
    config.lock()
    return config
