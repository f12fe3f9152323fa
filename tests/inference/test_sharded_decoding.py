"""Answers and drawings are the same on one device and on meshes of four, with the fewest spare images."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import REPOSITORY

Q_PROJ, O_PROJ = (f"llm/decoder/layers_0/attention/{name}_proj/kernel" for name in "qo")


def run(*cases):
    command = [sys.executable, "-m", "tests.helpers.sharded_decoding", *cases]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def same_latents(result, one, parts):
    """Six images, each another, of which each device draws its part."""
    assert (result["latent_parts"], one["latent_parts"]) == ([parts] * 3, [1] * 3)
    expected = np.array(one["latents"])
    for ours in (result["latents"], result["apart"], one["apart"]):
        np.testing.assert_allclose(np.array(ours), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(np.unique(np.round(expected.reshape(6, -1), 2), axis=0)) == 6


def same_pixels(result, one, parts):
    """Five images, decoded by each device in turn."""
    assert (result["pixel_parts"], one["pixel_parts"]) == ([parts], [1])
    assert np.max(np.abs(np.subtract(result["pixels"], one["pixels"]))) <= 1
    assert len(set(one["pixels"][0])) > 50
    assert len(set(map(tuple, one["pixels"]))) == 5


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
    assert (four["images_drawn"], one["images_drawn"]) == ([2, 4, 6, 6, 4], [2, 4, 6, 5, 3])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["full", "int8"])
def test_every_kind_of_mesh_changes_nothing(precision):
    parts = {"4,1,1": (1, 1), "1,1,4": (4, 4), "1,2,2": (4, 2), "1,4,1": (4, 1)}  # of a kernel, of a cache of one row
    results = run(precision, "1,1,1", *parts)
    one = results["1,1,1"]
    assert results["4,1,1"]["images_drawn"] == [4, 4, 8, 8, 4]
    for sizes, (kernel, cache) in parts.items():
        result = results[sizes]
        for name in ("asked", "codes", "turns"):
            assert result[name] == one[name], (sizes, name)
        rows = np.prod([int(size) for size in sizes.split(",")[:2]])
        same_latents(result, one, parts=rows)
        same_pixels(result, one, parts=rows)
        assert result["shares"][Q_PROJ] == kernel
        assert result["cache"] == cache
        if precision == "int8":
            assert result["shares"][f"{Q_PROJ}_scale"] == cache
            assert result["shares"][f"{O_PROJ}_scale"] == kernel // cache
