"""Answers and images are the same on one device and on meshes of four, with layers unrolled or stacked."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import REPOSITORY

Q_PROJ, O_PROJ = (f"llm/decoder/layers_0/attention/{name}_proj/kernel" for name in "qo")


def run(*cases):
    command = [sys.executable, "-m", "tests.helpers.sharded_decoding", *cases]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def same_latents(result, one, parts):
    """Six different images, of which each device generates its part."""
    assert (set(result["latent_parts"]), set(one["latent_parts"])) == ({parts}, {1})
    expected = np.array(one["latents"])
    for latents in (result["latents"], *(each["alone"] for each in (result, one) if "alone" in each)):
        np.testing.assert_allclose(np.array(latents), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(np.unique(np.round(expected.reshape(6, -1), 2), axis=0)) == 6


def same_pixels(result, one, parts):
    """Five images of codes, decoded by each device in turn, and five of latents, a part of them on each device."""
    assert (result["pixel_parts"], one["pixel_parts"]) == ([parts], [1])
    assert (result["flow_pixel_parts"], one["flow_pixel_parts"]) == ([4], [1, 1])
    for name in ("pixels", "flow_pixels"):
        assert np.max(np.abs(np.subtract(result[name], one[name]))) <= 1
        assert len(set(one[name][0])) > 50
        assert len(set(map(tuple, one[name]))) == 5


def same_tokens_when_stacked(result, one):
    stacked = result["stacked"]
    assert stacked.pop("copied") == 0
    assert stacked == {name: one[name] for name in stacked}


def test_rows_and_heads_divided_over_four_devices_change_nothing():
    results = run("short", "1,1,1", "2,1,2")
    one, four = results["1,1,1"], results["2,1,2"]
    assert four["asked"] == one["asked"]
    assert len(set(one["asked"])) == 3
    assert four["codes"] == one["codes"]
    assert len(set(map(tuple, one["codes"]))) == 6
    assert four["shares"][Q_PROJ] == 2
    same_latents(four, one, parts=2)
    same_pixels(four, one, parts=2)
    same_tokens_when_stacked(four, one)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["full", "int8"])
def test_every_kind_of_mesh_changes_nothing(precision):
    parts = {"4,1,1": (1, 1), "1,1,4": (4, 4), "1,2,2": (4, 2), "1,4,1": (4, 1)}  # of a kernel, of a cache of one row
    results = run(precision, "1,1,1", *parts)
    one = results["1,1,1"]
    for sizes, (kernel, cache) in parts.items():
        result = results[sizes]
        for name in ("asked", "codes", "turns"):
            assert result[name] == one[name], (sizes, name)
        assert result["windowed"] == result["codes"]
        rows = np.prod([int(size) for size in sizes.split(",")[:2]])
        same_latents(result, one, parts=rows)
        same_pixels(result, one, parts=rows)
        assert result["shares"][Q_PROJ] == kernel
        assert result["cache"] == cache
        if precision == "full":
            same_tokens_when_stacked(result, one)
        if precision == "int8":
            assert result["shares"][f"{Q_PROJ}_scale"] == cache
            assert result["shares"][f"{O_PROJ}_scale"] == kernel // cache
