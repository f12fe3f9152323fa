"""Compiles a program for a TPU topology that this machine does not have, and writes the result to files."""

import dataclasses
import gzip
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from janus_jax.compiler_options import Options
from janus_jax.errors import UserError
from janus_jax.hardware import Machine, canonical_kind, quiet_without_tpu

# Usual name -> name that libtpu knows. The number in a name of v5p counts cores, two per chip; in the others, chips.
TOPOLOGIES = {
    "v5p-8": "v5p:2x2x1",
    "v5p-16": "v5p:2x2x2",
    "v5p-32": "v5p:2x2x4",
    "v5p-64": "v5p:2x4x4",
    "v5p-128": "v5p:4x4x4",
    "v5p-256": "v5p:4x4x8",
    "v5p-512": "v5p:4x8x8",
    "v5p-1024": "v5p:8x8x8",
    "v5e-1": "v5e:1x1",
    "v5e-4": "v5e:2x2",
    "v5e-8": "v5e:2x4",
    "v5e-16": "v5e:4x4",
    "v5e-32": "v5e:4x8",
    "v5e-64": "v5e:8x8",
    "v5e-128": "v5e:8x16",
    "v5e-256": "v5e:16x16",
    "v6e-1": "v6e:1x1",
    "v6e-4": "v6e:2x2",
    "v6e-8": "v6e:2x4",
    "v6e-16": "v6e:4x4",
    "v6e-32": "v6e:4x8",
    "v6e-64": "v6e:8x8",
    "v6e-128": "v6e:8x16",
    "v6e-256": "v6e:16x16",
}
_CLOUD_NAMES = {"v5litepod": "v5e", "v5lite": "v5e"}  # generation as Google Cloud writes it -> as it is called here


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device, from the compiler's own analysis."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporary: int  # sum of all buffers for temporaries
    peak: int  # most bytes in use at the same time
    program: int  # code


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program as text, with what the cost model needs besides."""

    hlo: str
    machine: Machine
    memory: Memory
    jax_version: str
    compiler_version: str


def topology_devices(name: str, slices: int = 1) -> Sequence[Any]:
    """Devices of a topology such as "v5p:4x4x4", "v5p-128" or "v5litepod-16". That needs libtpu, but no hardware.

    Raises UserError if libtpu is not installed, or if the topology is unknown.
    """
    libtpu_name = _libtpu_name(name)
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("--topology needs the TPU compiler: pip install -c constraints.txt -e '.[tpu]'") from error
    quiet_without_tpu()
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile, since none uses a chip
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if libtpu_name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu otherwise expects hosts with four chips
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=libtpu_name, **options).devices
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--topology={name}: {'unknown' if 'regex' in reason else reason}; {_known(name)}") from error


def _libtpu_name(name: str) -> str:
    """The name that libtpu has for a topology. Raises UserError for a slice that is not in the table."""
    generation = re.split("[-:]", name.lower())[0]
    ours = _CLOUD_NAMES.get(generation, generation) + name.lower().removeprefix(generation)
    if ":" in ours:  # chips per axis, which libtpu checks
        return ours
    if ours not in TOPOLOGIES:
        raise UserError(f"--topology={name}: unknown; {_known(ours)}")
    return TOPOLOGIES[ours]


def _known(name: str) -> str:
    """The names that an unknown one may stand for: slices of its generation, or of all generations."""
    same = [known for known in TOPOLOGIES if known[:3] == name[:3]]
    return f"expected {', '.join(same or TOPOLOGIES)}, or chips per axis such as v5p:4x4x4 and v5e:16x16"


def compile_program(lowered: Any, devices: Sequence[Any], options: Options) -> tuple[Program | None, str]:
    """The compiled program and ""; or None and the compiler's message if the program does not fit into memory."""
    try:
        compiled = lowered.compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).strip().splitlines()[0]
    analysis = compiled.memory_analysis()
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporary=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )
    libtpu = importlib.metadata.version("libtpu")
    return Program(compiled.as_text(), machine_of(devices), memory, jax.__version__, libtpu), ""


def machine_of(devices: Sequence[Any]) -> Machine:
    """The machine that the devices of a topology make up, for the cost model."""
    first, slices = devices[0], len({getattr(device, "slice_index", 0) for device in devices})
    return Machine(
        kind=canonical_kind(first.device_kind),
        cores=getattr(first, "num_cores", 1),
        coordinates=tuple(tuple(device.coords) for device in devices[: len(devices) // slices]),
        slices=slices,
    )


def needed_bytes(reason: str) -> int:
    """Bytes per device of a program that does not fit, from "Used 101.31G of 95.74G hbm"; 0 for other messages."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", reason)
    return int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))) if found else 0


def write_program(program: Program, path: str) -> None:
    """Writes the compressed HLO text to `path`, and what else is known about the program to `side_file(path)`."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(program.hlo.encode(), 6))
    facts = {
        "device_kind": program.machine.kind,
        "cores_per_device": program.machine.cores,
        "coordinates": [list(c) for c in program.machine.coordinates],
        "slices": program.machine.slices,
        "jax_version": program.jax_version,
        "libtpu_version": program.compiler_version,
        "memory": dataclasses.asdict(program.memory),
    }
    side_file(target).write_text(json.dumps(facts) + "\n")


def side_file(path: epath.Path) -> epath.Path:
    """FILE.gz -> FILE.json."""
    name = path.name.removesuffix(".gz")
    return path.parent / f"{name}.json"
