"""Operations of a step, sweeps, reports and files, without compiling anything."""

import dataclasses
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import janus_pro_7b, janusflow_1p3b, quickstart_flow
from janus_jax.compile_check import check as check_module
from janus_jax.compile_check import progress, sweep
from janus_jax.compile_check.check import Check
from janus_jax.compile_check.estimate import estimate
from janus_jax.compile_check.program import Memory, Program, topology_devices, write_program
from janus_jax.compile_check.report import as_dict, format_report
from janus_jax.compile_check.sweep import parse_sweep, with_variant
from janus_jax.errors import UserError
from janus_jax.hardware import Machine
from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.params import abstract_params, flatten
from janus_jax.models.presets import JANUS_PRO_7B, LPIPS_VGG, PRESETS, VQ_TINY
from janus_jax.training.architecture import model_config
from janus_jax.training.flops import forward_products, image_tokenizer_flops, step_flops
from janus_jax.training.plan import Plan
from launch.cli.errors import pairs
from tests.helpers.small_program import COORDINATES, CORES, KIND, TEXT

PROGRAM = Program(TEXT, Machine(KIND, CORES, COORDINATES), Memory(1, 2, 3, 40, 50, 6), "0.11.1", "0.0.46.3")


def make_check(**changes):
    fields = dict(
        name="small",
        topology="v5p-16",
        chips=8,
        mesh={"data": 1, "fsdp": 8, "tensor": 1},
        rows=8,
        micro_batches=1,
        tokens=8 * 4096,
        images_at_most=16,
        steps=86_400,
        remat="full",
        state_bytes={"trained parameters": 10, "optimizer": 20, "moving average": 0},
        fits=True,
        needed_bytes=50,
        reason="",
        model_flops=8e12,
        estimate=estimate(PROGRAM),
        program=PROGRAM,
    )
    return Check(**(fields | changes))


# Janus-Pro-7B by hand: 30 layers of 4 x 4096^2 + 3 x 4096 x 11008 weights, a head of 4096 x 102400.
LAYERS, HEAD = 30 * (4 * 4096**2 + 3 * 4096 * 11008), 4096 * 102400
ATTENTION = 30 * 2 * 4096 * 4096 * 4096 / 2  # multiply-adds of a row: two products, the visible half


def test_flops_of_an_image_tokenizer_are_counted_from_its_layers():
    def products(config, size, number=1):
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return forward_products(config, *[image] * number)

    # VGG-16 without its classifier has 15.35 G multiply-adds for an image of 224 pixels; LPIPS reads two.
    assert products(LPIPS_VGG, 224, 2) == pytest.approx(2 * 15.347e9, rel=1e-4)
    siglip = PRESETS["janus_pro_tiny"].siglip
    weights = 4 * siglip.width**2 + 2 * siglip.width * siglip.mlp_dim
    tokens = siglip.num_tokens
    layers = siglip.depth * tokens * (weights + 2 * tokens * siglip.width)
    assert products(siglip, 32) == layers + tokens * siglip.patch_size**2 * 3 * siglip.width
    patches = PatchDiscriminatorConfig(base_channels=4, num_layers=1, norm_eps=1e-5)
    by_hand = 4 * 4 * 16 * 3 * 4 + 3 * 3 * 16 * 4 * 8 + 2 * 2 * 16 * 8  # 8 pixels -> 4, 3 and 2
    assert products(patches, 8) == by_hand
    total = image_tokenizer_flops(VQ_TINY, 5, 32, patches, LPIPS_VGG)
    expected = 3 * products(VQ_TINY, 32) + 7 * products(patches, 32) + 1.5 * products(LPIPS_VGG, 32, 2)
    assert total == 2 * 5 * expected


def test_flops_of_text_rows_are_six_per_weight_and_token():
    expected = 6 * 4096 * (LAYERS + HEAD) + 6 * ATTENTION
    assert step_flops(JANUS_PRO_7B, {"llm"}, ("text",), 3, 4096, 0, 0) == pytest.approx(3 * expected, rel=1e-12)


def test_a_frozen_llm_has_no_gradient_of_weights_and_an_encoder_runs_for_every_slot():
    image_head = 4096 * (4096 + 16384)
    encoder = 24 * (576 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 576**2 * 1024)
    expected = 4 * 4096 * (LAYERS + HEAD) + 6 * ATTENTION + 6 * 4096 * image_head + 2 * 5 * encoder
    stage1 = {"aligner", "gen_aligner", "gen_head", "gen_embed"}
    assert step_flops(JANUS_PRO_7B, stage1, ("understand", "generate"), 1, 4096, 5, 7) == pytest.approx(expected)


def test_janusflow_also_counts_the_convolutions_and_the_alignment_of_every_slot():
    """All but SigLIP is trained. A block of C channels has a 7 x 7 filter, C x 4C twice, and 2048 x 2C per image."""
    config = janusflow_1p3b.get_config("stage2")
    rows, length, width = 512, 4096, 2048
    layers, head = 24 * (4 * width**2 + 3 * width * 5632), width * 102400
    attention = 24 * 2 * width * length * length / 2
    siglip = 24 * (576 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 576**2 * 1024)

    def blocks(channels):
        return 2 * (576 * channels * (49 + 8 * channels) + width * 2 * channels)

    encoder = 576 * 16 * 768 + 768 * width + width**2 + blocks(768)
    decoder = blocks(1536) + 576 * 1536 * 16
    projector = 576 * (2 * width**2 + width * 1024)
    generation = encoder + decoder + 2 * 576 * 768 * width + projector
    expected = 6 * length * (layers + head) + 6 * attention + 2 * 7 * siglip + 7 * (6 * generation + 2 * siglip)
    modules = {path.split("/")[0] for path in flatten(abstract_params(model_config(config)))} - {"siglip"}
    tasks = ("understand", "text", "generate")
    assert step_flops(model_config(config), modules, tasks, rows, length, 7, 7) == pytest.approx(rows * expected)
    without = dataclasses.replace(model_config(config), alignment=None)
    saved = rows * 7 * (6 * projector + 2 * siglip)
    assert step_flops(without, modules, tasks, rows, length, 7, 7) == pytest.approx(rows * expected - saved)


def test_the_arms_of_the_ablation_differ_from_janus_by_their_encoder_and_their_semantic_decoder():
    """All is trained but the image tokenizer, and the semantic decoder of B. D is Janus."""
    tasks, rows, length, und_slots, gen_slots = ("understand", "generate"), 2, 4096, 5, 7

    def flops(arm, tasks=tasks, frozen=()):
        modules = {"aligner", "gen_aligner", "gen_embed", "gen_head", "llm", "semantic", "siglip"} - set(frozen)
        return step_flops(PRESETS[f"janus_1p3b_arm_{arm}"], modules, tasks, rows, length, und_slots, gen_slots)

    siglip = 24 * (576 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 576**2 * 1024)
    encoder, image_head = 6 * rows * und_slots * siglip, 6 * rows * length * 2048 * (2048 + 16384)
    assert flops("d") - flops("a") == pytest.approx(encoder)
    assert flops("a") - flops("f", ("generate",)) == pytest.approx(0, abs=1e6)
    assert flops("d") - flops("e", ("understand",)) == pytest.approx(image_head)
    decoder = PRESETS["janus_1p3b_arm_b"].semantic
    weights = decoder.width * (4 * decoder.width + 2 * decoder.mlp_dim)
    semantic = decoder.depth * (576 * weights + 576**2 * decoder.width)
    images = rows * (length // 576 + und_slots)  # of codes: as many as a row has room for, and those that are read
    assert flops("b", frozen=("semantic",)) - flops("a") == pytest.approx(2 * images * semantic)
    assert flops("b") - flops("a") == pytest.approx(6 * images * semantic)
    assert flops("c", ("understand",)) - flops("e", ("understand",)) == pytest.approx(
        6 * rows * und_slots * semantic - encoder
    )


@pytest.fixture
def uncompiled(monkeypatch):
    """Makes checks for one device that compile nothing."""
    monkeypatch.setattr(Plan, "make_step", lambda plan: SimpleNamespace(lower=lambda state, batch: None))
    for module in (check_module, sweep):
        monkeypatch.setattr(module, "topology_devices", lambda *_: jax.devices()[:1])
    monkeypatch.setattr(check_module, "compile_program", lambda *_: (PROGRAM, ""))
    monkeypatch.setattr(check_module, "estimate", lambda program: estimate(PROGRAM))


def test_a_check_of_janusflow_counts_its_tokens_and_slots(uncompiled):
    """It does not count those of the latents."""
    result = check_module.check(quickstart_flow.get_config("stage2"), "v5p-8", 1, {})
    assert (result.tokens, result.images_at_most) == (10 * 96, 10 * (3 + 3))
    assert result.model_flops > 0


@pytest.mark.parametrize(
    ("stage", "length", "und_slots", "gen_slots", "images"),
    [
        ("stage2", 4096, 7, 7, 7),  # as it is: room for half of the slots
        ("stage2", 4096, 2, 1, 3),
        ("stage2", 577 + 578, 7, 1, 2),  # generation needs one more token, understanding two
        ("stage2", 577 + 577, 7, 1, 1),
        ("text_only", 4096, 7, 7, 0),  # without a task that fills them
    ],
)
def test_a_row_has_no_more_images_than_its_tokens_can_hold(stage, length, und_slots, gen_slots, images):
    config = janus_pro_7b.get_config(stage)
    config.data.update(row_length=length, und_slots=und_slots, gen_slots=gen_slots)
    assert check_module.images_of_a_row(config, model_config(config)) == images


def test_rates_and_utilisation_follow_from_the_predicted_time():
    check = make_check()
    seconds, facts = check.estimate.predicted, as_dict(check)
    assert facts["mfu"] == pytest.approx(1e12 / 459e12 / seconds)
    assert facts["tokens_per_second_per_chip"] == pytest.approx(4096 / seconds)
    assert facts["images_per_second_at_most"] == pytest.approx(16 / seconds)
    assert facts["days"] == pytest.approx(seconds)
    facts = json.loads(json.dumps(facts))
    assert facts["memory"]["peak"] == 50
    assert facts["temporary_bytes"] == 50 - 10 - 20
    assert "6.25 GB/s" in facts["limits"] and "not measured" in facts["limits"]
    report = format_report(check)
    assert report.replace("\n", " ").endswith(facts["limits"])
    assert "small on v5p-16: 8 chips (data 1, fsdp 8, tensor 1)" in report
    assert "\nfits\n" in report and "all-gather" in report


def test_the_lines_on_memory_add_up_to_the_most_that_is_in_use():
    gb = 10**9
    state = {"trained parameters": 10 * gb, "moving average": 0, "batch": gb}
    check = make_check(state_bytes=state, needed_bytes=50 * gb)
    lines = format_report(check).splitlines()
    begin = lines.index("memory of a chip, GB") + 1
    *parts, whole, _ = [float(line[40:]) for line in lines[begin : lines.index("fits")]]
    assert parts == [10, 1, 39] and sum(parts) == whole == 50


def test_parameters_that_the_step_does_not_read_count_as_memory(uncompiled):
    """The hand-written program has arguments of 1 byte and a peak of 50."""
    result = check_module.check(janus_pro_7b.get_config("text_only:debug"), "v5p-8", 1, {})
    held = sum(result.state_bytes.values())
    assert held > 1e6 and result.needed_bytes == 50 + held - 1
    assert result.temporary_bytes == 49


def test_the_speed_of_an_image_tokenizer_is_told_in_images():
    facts = as_dict(make_check(tokens=0, images_at_most=8))
    assert facts["images_per_second"] == pytest.approx(8 / facts["estimate"]["predicted"])
    assert not {"tokens_per_second_per_chip", "images_per_second_at_most"} & facts.keys()
    assert "tokens" not in format_report(make_check(tokens=0)).split("days")[0].split("time of a step")[1]


def test_collectives_are_reported_with_bytes_seconds_and_what_is_waited_for():
    """The program has eight gathers of 7/8 of 8 MiB beside products; the tests of the timeline count the same."""
    check = make_check()
    result = as_dict(check)["estimate"]
    assert result["wire_bytes"] == {"all-gather": 8 * 7 / 8 * 2 * 2048**2}
    alone, waited = result["transfer_seconds"]["all-gather"], result["exposed_seconds"]["all-gather"]
    assert waited == pytest.approx(alone - 8 * 70_000 / 1.75e9)
    assert waited == result["seconds"]["exposed collectives"]
    lines = format_report(check).splitlines()
    row = lines[1 + next(i for i, line in enumerate(lines) if line.startswith("collectives:"))]
    assert row.split() == ["all-gather", "0.059", f"{alone:.3f}", f"{waited:.3f}"]


def test_a_program_that_does_not_fit_is_reported_without_times():
    check = make_check(estimate=None, program=None, fits=False, reason="Used 101G of 95G hbm")
    assert format_report(check).endswith("DOES NOT FIT: Used 101G of 95G hbm")
    assert as_dict(check)["mfu"] is None


def test_the_program_is_written_with_what_is_needed_to_judge_it(tmp_path):
    write_program(PROGRAM, str(tmp_path / "new" / "step.gz"))
    assert gzip.decompress((tmp_path / "new" / "step.gz").read_bytes()).decode() == TEXT
    facts = json.loads((tmp_path / "new" / "step.json").read_text())
    assert facts["device_kind"] == KIND and facts["cores_per_device"] == CORES and facts["slices"] == 1
    assert facts["coordinates"] == [list(c) for c in COORDINATES]
    assert (facts["jax_version"], facts["libtpu_version"]) == ("0.11.1", "0.0.46.3")
    assert facts["memory"]["temporary"] == 40


@pytest.mark.parametrize(("name", "kind"), [("v5e-1", "TPU v5 lite"), ("v6e-1", "TPU v6 lite")])
def test_a_single_chip_is_a_topology_too(name, kind):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    assert [device.device_kind for device in topology_devices(name)] == [kind]


def test_a_sweep_is_every_combination():
    variants = parse_sweep("remat=full,context; batch=64; mesh=1x64x1,4x16x1")
    assert len(variants) == 4
    assert variants[1] == {"remat": "full", "batch": 64, "mesh": (4, 16, 1)}
    config = with_variant(janus_pro_7b.get_config("stage2"), variants[3])
    assert (config.remat, config.train.batch_size, config.mesh.data, config.mesh.fsdp) == ("context", 64, 4, 16)


@pytest.mark.parametrize("text", ["", "remat", "remat=some", "batch=many", "mesh=4x4", "rows=3"])
def test_a_sweep_that_is_none_is_refused_with_its_text(text):
    with pytest.raises(UserError, match="--sweep="):
        parse_sweep(text)


def test_a_compilation_says_what_it_compiles_and_every_minute_that_it_still_does(uncompiled, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(check_module, "compile_program", lambda *_: time.sleep(0.2) or (PROGRAM, ""))
    check_module.check(janus_pro_7b.get_config("text_only:debug"), "v5p-8", 1, {})
    first, *later = capsys.readouterr().err.splitlines()
    assert "text_only" in first and "v5p-8" in first
    assert later and all(line.startswith("still compiling") for line in later)


@pytest.mark.parametrize(
    ("name", "told"),
    [("v5litepod-17", "v5e-16, v5e-32"), ("v5e-17", "v5e-16, v5e-32"), ("v5e:1", "v5e-16"), ("tpu", "v6e-256")],
)
def test_an_unknown_topology_is_refused_with_the_known_ones(name, told):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    with pytest.raises(UserError, match=f"--topology={name}") as caught:
        topology_devices(name)
    assert told in str(caught.value) and "regex" not in str(caught.value)


@pytest.mark.parametrize("name", ["v5litepod-16", "v5e-16", "V5E-16", "v5e:4x4", "v5litepod:4x4"])
def test_a_slice_is_known_by_googles_name_too(name):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    devices = topology_devices(name)
    assert (len(devices), devices[0].device_kind) == (16, "TPU v5 lite")


def small_sweep(text):
    return sweep.sweep(janus_pro_7b.get_config("text_only:debug"), parse_sweep(text), "v5p-8", 1, {})


def test_what_is_impossible_is_told_first_and_costs_a_sweep_nothing_else(uncompiled, monkeypatch, capsys):
    """The second batch of two rows cannot be divided into three micro-batches; the first can."""
    monkeypatch.setattr(sweep, "with_variant", in_three_parts)
    checks, impossible = small_sweep("batch=3,2")
    assert [check.rows for check in checks] == [3]
    reason = "train.micro_batches=3 does not divide the 2 rows of a device"
    assert [(variant.rows, variant.reason) for variant in impossible] == [(2, reason)]
    told = [line for line in capsys.readouterr().err.splitlines() if " rows  mesh " in line]
    assert [int(line.split()[1]) for line in told] == [2, 3]
    *_, last = sweep.format_sweep(checks, impossible).splitlines()
    assert last.split() == f"none 2 rows mesh 1x1x1 impossible: {reason}".split()


def in_three_parts(config, variant):
    config = with_variant(config, variant)
    config.train.micro_batches = 3
    return config


def test_a_sweep_of_which_all_is_impossible_is_an_error_with_every_reason(uncompiled):
    with pytest.raises(UserError) as caught:
        small_sweep("batch=8,16;mesh=2x1x1,1x3x1")
    assert str(caught.value) == (
        "--sweep: every combination is impossible: "
        "mesh.data=2, mesh.fsdp=1, mesh.tensor=1 does not fit 1 devices; "
        "mesh.data=1, mesh.fsdp=3, mesh.tensor=1 does not fit 1 devices"
    )


SWEEP = """
import runpy, sys
import jax
import jax.numpy as jnp
sys.path.insert(0, "tests/compile_check")
from test_check import make_check
from janus_jax.compile_check import sweep
sweep.topology_devices = lambda *_: jax.devices()[:1]
sweep.check_plan = lambda config, *_: make_check(remat=config.remat, rows=config.train.batch_size)
runpy.run_module("launch.compile_check", run_name="__main__")
"""


def test_a_sweep_as_json_prints_nothing_else_and_its_progress_on_stderr():
    """Nothing is compiled. All variants take the same time on one device, so that more rows are better."""
    flags = ["--config=configs/janus_pro_7b.py:text_only:debug", "--topology=v5p-16", "--json"]
    flags.append("--sweep=batch=8,16;mesh=1x1x1,2x1x1")
    command = [sys.executable, "-c", SWEEP, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    *checks, first, second = json.loads(done.stdout)
    assert [check["rows"] for check in checks] == [16, 8]
    for variant, rows in ((first, 8), (second, 16)):
        assert (variant["rows"], variant["remat"], variant["fits"]) == (rows, "none", False)
        assert variant["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1}
        assert variant["reason"] == "mesh.data=2, mesh.fsdp=1, mesh.tensor=1 does not fit 1 devices"
    progress = [line for line in done.stderr.splitlines() if " rows  mesh 1x8x1 " in line]
    assert [int(line.split()[1]) for line in progress] == [8, 16]


def test_options_of_the_compiler_are_names_and_values():
    assert pairs("compiler_option", ["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UserError, match="--compiler_option=a: expected name=value"):
        pairs("compiler_option", ["a"])
