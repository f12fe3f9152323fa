"""Both sides of the suite `inference` decode the same tokens, so that the times compare the same work."""

import dataclasses
import shutil

import pytest

from launch.benchmarks import inference


@pytest.mark.slow
def test_both_sides_give_the_same_tokens_and_every_case_has_its_rows(monkeypatch):
    monkeypatch.setattr(inference, "ROUNDS", 1)
    monkeypatch.setattr(inference, "CODES_PER_SIDE", 4)
    config = inference._config(width=128, mlp_dim=256)
    siglip = dataclasses.replace(config.siglip, width=64, depth=2, num_heads=4, mlp_dim=128)
    vq = dataclasses.replace(config.vq, base_channels=32, num_codes=512)
    llama = dataclasses.replace(config.llama, depth=2, vocab_size=4096)
    with inference._sides(dataclasses.replace(config, llama=llama, siglip=siglip, vq=vq), "float32") as sides:
        results = [
            *inference._text(sides, 1, 1e10),
            *inference._text(sides, 3, 1e10),
            *inference._images(sides, 2),
            *inference._first_token(sides),
            *inference._encoders(sides, 4),
        ]
    compiled = [result for result in results if result.case.endswith("the peer compiled")]
    assert len(compiled) == (shutil.which("g++") is not None)  # of the text of one row, where there is a C++ compiler
    assert len(results) - len(compiled) == 3 + 3 + 2 + 2 + 2
    same = [result for result in results if "that are the peer's" in result.case]
    assert [result.passed for result in same] == [True] * 4
    assert all(result.value > 0 for result in results)
    assert all(float(result.case.split("difference ")[1].rstrip(")")) < 1e-3 for result in results[-2:])
