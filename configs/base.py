"""The fields of every run, with their default values and where each value comes from.

The papers are Janus (arXiv 2410.13848) and Janus-Pro (arXiv 2501.17811), which shares the values of Janus where it is
not named. "not stated" marks a choice that both papers leave open.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference

AUTO = "auto"  # what fits the devices and the host, see the fields


def base_config(name: str, model: str) -> ConfigDict:
    """A complete config. Runs override fields and lock it."""
    return ConfigDict(
        {
            "name": name,  # name of the run in logs
            # A key of janus_jax.models.presets.PRESETS, or "checkpoint" for the architecture of init.checkpoint.
            "model": model,
            "seed": 0,
            # Dtype of computation. Parameters, norms, softmax and losses stay float32 (papers: not stated).
            "dtype": "bfloat16",
            # Activations that are kept for the backward pass: a key of janus_jax.models.scan_layers.REMAT_POLICIES, or
            # "auto": the fastest of them that is predicted to fit the devices (janus_jax.training.auto_remat).
            "remat": AUTO,
            "attention": "auto",  # or a key of janus_jax.ops.attention.BACKENDS
            "init": {
                # Folders of parameters to start from. Parameters that none of them holds are initialised at random. A
                # part replaces that part of the checkpoint.
                "checkpoint": "",  # whole model: ours (also a workdir), Hugging Face's or DeepSeek's
                "siglip": "",  # transformers' SiglipModel or SiglipVisionModel
                "llm": "",  # transformers' LlamaForCausalLM, e.g. DeepSeek-LLM
                "vq": "",  # LlamaGen's vq_ds16, or an image tokenizer trained here
                # Whether a run is refused that would begin with a random model, since no other field here names a part
                # of it. True in fine-tuning and in the stages 2 and 3, which go on from a model.
                "required": False,
                "vae": "",  # VAE whose latents JanusFlow learns: diffusers' AutoencoderKL or ours
            },
            "trainable": ((".*", True),),  # ordered (path regex, trained or not); every parameter must match
            # Adapters of weight matrices (LoRA). All parameters that `trainable` freezes are then kept as they are in
            # init.checkpoint, and no checkpoint holds them (docs/finetuning.md).
            "lora": {
                # ((path regex, rank, alpha), ...), such as (("llm/.*_proj/kernel", 16, 32.0),); the first match counts.
                "rules": (),
                "rslora": False,  # whether adapters count alpha / sqrt(rank) instead of alpha / rank
                "dropout": 0.0,  # probability with which an adapter does not see an input feature
                # How frozen parameters are kept: "float32", "bfloat16" or "int8" (the LLM's and its heads' matrices).
                "base_dtype": "bfloat16",
            },
            "train": {
                "batch_size": 256,  # rows per step (packed rows for Janus; papers: rows or samples not stated)
                # Number of parts in which a device computes its rows, one after the other. More parts take less memory
                # and give the same step.
                "micro_batches": 1,
                # The stages take these from Janus, Table 1, and Janus-Pro, Table 2. The values here are open choices.
                "num_steps": 20_000,
                "learning_rate": 1e-4,
                "schedule": "constant",  # or "cosine"
                "final_fraction": 0.0,  # learning rate at the end of "cosine" by its peak (papers: not stated)
                "warmup_steps": 0,
                "weight_decay": 0.0,  # Janus, Table 1, stages I and II; Janus-Pro, Table 2, all stages
                "decay_pattern": ".*/kernel",  # paths of parameters with weight decay (papers: not stated)
                "b1": 0.9,  # Janus, Table 1; Janus-Pro, Table 2
                "b2": 0.95,  # Janus, Table 1; Janus-Pro, Table 2
                "eps": 1e-8,  # papers: not stated
                "clip_norm": 1.0,  # Janus, Table 1; Janus-Pro, Table 2
                # Decay of a moving average of the trained parameters, which is kept from step 0 on; 0: no average
                # (Janus and Janus-Pro mention none).
                "ema": 0.0,
            },
            "loss": {
                "normalization": "tokens",  # or "tasks"; papers: not stated
                "chunk_size": 1024,  # number of tokens of a device whose logits exist at the same time
                # Whether to compute no logits for chunks of tokens without loss. That is less work where answers are
                # few. But the time of a step then depends on the data and differs between devices, and
                # launch.compile_check cannot predict it.
                "skip_unsupervised": False,
                "z_loss": 0.0,  # weight of log_partition^2 of both heads (papers: not stated)
            },
            "data": {
                "tokenizer": "",  # path of a tokenizer.json; empty: that of init.checkpoint
                # Paths of ArrayRecord files, or (path, weight). Without a weight, a source weighs as much as it has
                # records. The last part of a path may be a pattern such as text-*; an existing file of that very name
                # comes first, and the folders before it are taken literally.
                "sources": {"understand": (), "text": (), "generate": ()},
                # Shares of the tasks. A share, like a weight above, may be ((first step, share), ...) to change during
                # the run.
                "ratio": ratio(1.0, 1.0, 1.0),
                "ratio_unit": "samples",  # what the ratio counts: "samples", "tokens" or "rows" (papers: not stated)
                "row_length": 4096,  # tokens per row; Janus, section 4.1; Janus-Pro, Table 1
                # Largest number of understanding images per row: 7 * 578 tokens fill a row (papers: not stated).
                "und_slots": 7,
                "gen_slots": 7,  # largest number of generation images per row
                "packing_bins": 6,  # rows of a logical shard that are filled at the same time
                "supervision": "all",  # text that carries loss: "all" (Janus, section 3.3) or "answers"
                # Probability that a caption is dropped, for classifier-free guidance; Janus, footnote 2 (Janus-Pro: not
                # stated).
                "drop_condition": 0.1,
                # Whether generation samples may have condition images, which others are generated from (Janus-4o).
                "condition_images": False,
                # Probability that the codes of a condition image are left out, so that only SigLIP's features are seen;
                # train_janus.py of Janus-4o.
                "drop_condition_codes": 0.5,
                "first_sentence": 0.0,  # probability that a caption is cut to its first sentence
                # Crop of generation images and of those of the image tokenizer, see janus_jax.data.images.Crop. Janus,
                # section 4.2, crops the long side, and does not state where.
                "crop": {"random": False, "max_zoom": 1.0, "flip": False},
                # Whether to take VQ codes from the records (prepare_data) instead of computing them in the step.
                "stored_codes": False,
                # Number of records at the end of each source that are never trained on, see `validate`.
                "held_out": 0,
                "max_drop_rate": 0.1,  # largest share of bad samples of a source
                # Number of logical shards of the stream: a multiple of the number of hosts times `workers`. "auto" is
                # the largest power of two, up to 128, that divides train.batch_size.
                "num_shards": _number_or_auto(),
                # Number of processes per host that decode and pack; 0: a thread does it. "auto" takes half of the
                # cores, or a quarter where the step runs on them too.
                "workers": _number_or_auto(),
                # Whether workers hand over rows in shared memory (/dev/shm). Otherwise they do in pipes, more slowly.
                "shared_memory": True,
            },
            # Sizes of the device mesh; -1: all devices that the other axes leave. "auto" is the number of slices for
            # `data`, and 1 for `tensor` where every device has a row (janus_jax.sharding.auto_mesh).
            "mesh": {"data": _number_or_auto(), "fsdp": -1, "tensor": _number_or_auto()},
            "check_memory": True,  # whether to estimate the memory of a run, and to refuse one that does not fit
            "checkpoint": {
                "every_steps": 1000,  # steps between two checkpoints
                "keep": 2,  # number of newest checkpoints that are kept
            },
            "log_every": 50,  # steps between two lines of metrics
            # Losses, accuracies and perplexities of held-out records, always of the same rows.
            "validate": {
                "every_steps": 0,  # steps between two evaluations; 0, or data.held_out=0: never
                "num_rows": 64,  # number of rows evaluated, read in batches of train.batch_size
                # Whether to evaluate before the first step too. Later evaluations then tell the change since.
                "at_start": False,
                # Tasks whose held-out records are evaluated, trained or not; empty: those with a share in data.ratio.
                "tasks": (),
            },
            # Images that the run generates, and answers, into TensorBoard and WORKDIR/samples.
            "sample": {
                "every_steps": 0,  # steps between two times; 0: never
                "num_images": 4,  # number of images per prompt
                "prompts": (),  # captions to generate images of
            },
            # Figures of a part of public benchmarks of questions, as eval/... beside the metrics (docs/evaluation.md).
            "benchmarks": {
                "every_steps": 0,  # steps between two evaluations; 0: never
                "names": (),  # such as ("pope", "gqa")
                "data": "",  # folder of their files, as --data of launch.evaluate
                "limit": 200,  # number of questions of each benchmark, the first ones
                "rows": 16,  # number of questions that are answered together
            },
            # Steps to record into WORKDIR/profile. The first step of a process compiles, so leave it out.
            "profile": {"first_step": 0, "steps": 0},
        },
        convert_dict=True,
    )


def _number_or_auto() -> FieldReference:
    """A field that is "auto" by default and takes a number, also on the command line."""
    return FieldReference(AUTO, field_type=object)


def ratio(understand: Any, text: Any, generate: Any) -> ConfigDict:
    """Shares of the tasks. Each takes a number or a schedule, ((first step, share), ...), also on the command line."""
    shares = {"understand": understand, "text": text, "generate": generate}
    return ConfigDict({task: FieldReference(share, field_type=object) for task, share in shares.items()})


def lock(config: ConfigDict) -> ConfigDict:
    """Locks a config against new fields, so that a misspelt --config.x is an error."""
    config.lock()
    return config
