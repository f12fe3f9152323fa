"""A tiny model of transformers, and adapters of PEFT for it with what they compute: `tests/data_files/peft`.

With peft 0.21.2 and accelerate installed, `PYTHONPATH=. python tests/helpers/peft_files.py` makes the files anew.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from tests.helpers import REPOSITORY
from tests.helpers.torch_weights import make_pair, noise

FILES = REPOSITORY / "tests" / "data_files" / "peft"
TOKENS, CODES = np.array([[7, 9, 30, 12, 55]]), np.array([[3, 1, 20, 31]])
PROMPT, PAD_ID, NUM_NEW, GUIDANCE = [2, 41, 17, 33, 8], 0, 20, 5  # of greedy decoding, of text and of codes
LLM = r"model\.language_model\..*\.(q_proj|v_proj|down_proj)"
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    # A list of names also gives adapters to SigLIP.
    "list": {"target_modules": NAMES, "r": 3, "lora_alpha": 7, "use_rslora": True, "rank_pattern": {"down_proj": 5}},
    "dora": {"target_modules": LLM, "r": 2, "lora_alpha": 4, "use_dora": True},
    "saved": {
        "target_modules": ["o_proj", "vision_head", "lm_head", "embed_tokens", "fc1"],
        "modules_to_save": ["proj_out", "generation_aligner"],
        "r": 2,
        "lora_alpha": 3,
        "alpha_pattern": {"lm_head": 5},
    },
    "linear": {"target_modules": "all-linear", "r": 1, "lora_alpha": 2},
}
SECTIONS = {
    "text": {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "vision": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "mlp_ratio": 2,
        "projection_dim": 24,
        "depth": 2,
    },
    "vq": {
        "embed_dim": 4,
        "num_embeddings": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "latent_channels": 8,
        "num_hidden_layers": 2,
        "projection_dim": 24,
        "image_token_embed_dim": 24,
        "num_patches": 2,
    },
}


def tiny_pair():
    """transformers' model, our architecture and our parameters with the same weights."""
    return make_pair(**SECTIONS, seed=0)


def pixels():
    """An understanding image [1, 16, 16, 3] in [-1, 1]."""
    return np.tanh(noise("pixels", (1, 16, 16, 3))).astype(np.float32)


def torch_logits(model):
    """Text and image logits of a row of text, an image to understand, and codes: [T, V] and [T, C]."""
    inner = model.model
    with torch.no_grad():
        image = torch.tensor(pixels()).permute(0, 3, 1, 2)
        parts = [
            inner.language_model.embed_tokens(torch.tensor(TOKENS)),
            inner.aligner(inner.vision_model(image).last_hidden_state),
            inner.generation_aligner(inner.generation_embeddings(torch.tensor(CODES))),
        ]
        hidden = inner.language_model(inputs_embeds=torch.cat(parts, dim=1)).last_hidden_state[0]
        return model.lm_head(hidden).numpy(), inner.generation_head(hidden).numpy()


def torch_greedy(model):
    """What transformers decodes greedily: ids of an answer to `PROMPT`, and guided codes of an image."""
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = PROMPT[0], None, PAD_ID
    generation.generation_kwargs = {"boi_token_id": PROMPT[-1]}
    model.model.vision_model.config.num_image_tokens = NUM_NEW
    ids = torch.tensor([PROMPT])
    common = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    with torch.no_grad():
        text = model.generate(input_ids=ids, max_new_tokens=NUM_NEW, **common)[0, ids.shape[1] :]
        codes = model.generate(inputs=ids, generation_mode="image", guidance_scale=GUIDANCE, **common)[0]
    return text.numpy(), codes.numpy()


def _make(name: str, folder: Path) -> dict[str, np.ndarray]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_pair()[0], LoraConfig(**CASES[name], lora_dropout=0.1)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                values = torch.tensor(noise(key, tuple(parameter.shape)), dtype=torch.float32)
                parameter.copy_(parameter + 0.1 * values)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    for field in ("target_modules", "modules_to_save"):  # sets, in any order
        if isinstance(config[field], list):
            config[field].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    base = model.get_base_model()
    values = (*torch_logits(base), *torch_greedy(base))
    return {f"{name}_{kind}": value for kind, value in zip(("text", "image", "answer", "codes"), values, strict=True)}


def main() -> None:
    shutil.rmtree(FILES, ignore_errors=True)
    arrays = {}
    for name in CASES:
        arrays |= _make(name, FILES / name)
    np.savez(FILES / "logits.npz", **arrays)


if __name__ == "__main__":
    main()
