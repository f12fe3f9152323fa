"""The part of the model that an instruction of a compiled program comes from."""

# Names that JAX puts between those of modules.
_STRUCTURE = {"shard_map", "while", "body", "cond", "closed_call", "checkpoint", "rematted_computation"}
_DEPTH = 2  # modules in a name, and with a stack of layers two more


def part(source: str) -> str:
    """Modules and pass of an operation from its place in the traced program.

    "jit(step)/shard_map/transpose(jvp(Janus))/llm/decoder/while/body/closed_call/checkpoint/layers/mlp/up_proj/dot_general"
    gives "llm/decoder/layers/mlp, backward". What no module does has the name of its operation.
    """
    *path, operation = source.split("/")
    modules = [name for name in path if "(" not in name and name not in _STRUCTURE]
    depth = _DEPTH + 2 * ("layers" in modules)
    if "rematted_computation" in path:
        direction = "recomputed"
    elif any(name.startswith("transpose(") for name in path):
        direction = "backward"
    else:
        direction = "forward"
    return f"{'/'.join(modules[:depth]) or operation or 'unknown'}, {direction}"
