"""What fits of a batch that is too large, and that large programs are not compiled to learn it."""

import jax
import pytest

from configs import janus_pro_1b
from janus_jax.compile_check import search
from janus_jax.compile_check.check import check, too_large
from janus_jax.compile_check.hlo import parse, trip_count
from janus_jax.compile_check.search import Search
from janus_jax.hardware import Machine
from tests.compile_check.test_check import make_check

ROOM = 16 << 30  # bytes of a v5e


@pytest.fixture
def compiled(monkeypatch):
    """Rows at a time and remat of every compilation. A step takes `state + row * rows` bytes, but for remat."""
    tried = []

    def searching(rows, state, row, remat="full", saved=1.0):
        config = janus_pro_1b.get_config("text_only:debug")
        config.train.batch_size, config.remat = rows, remat

        def pretend(config, plan, topology, options):
            at_a_time = rows // config.train.micro_batches
            tried.append((at_a_time, config.remat))
            needed = int(state + row * at_a_time * (1 if config.remat == remat else saved))
            result = too_large(config, plan, topology, f"Used {needed / 2**30:.2f}G of 15.75G hbm")
            if needed > ROOM:
                return result
            return make_check(
                rows=rows, micro_batches=config.train.micro_batches, remat=config.remat, needed_bytes=needed
            )

        monkeypatch.setattr(search, "check_plan", pretend)
        return Search(config, "v5e-4", 1, {})

    monkeypatch.setattr(search, "topology_devices", lambda *_: jax.devices()[:1])
    monkeypatch.setattr(search, "machine_of", lambda _: Machine("TPU v5 lite", 1, ((0, 0, 0),)))
    return searching, tried


def test_many_rows_at_a_time_are_not_compiled_to_learn_that_they_do_not_fit(compiled):
    """Six rows at a time would fit, but do not divide the 32."""
    searching, tried = compiled
    given = (found := searching(32, state=4e9, row=2e9)).given()
    assert not given.fits and given.program is None and "32 rows at a time need about 68.0 GB" in given.reason
    best = found.fitting()
    assert (best.micro_batches, best.needed_bytes) == (8, 12_000_000_000)
    assert tried == [(1, "full"), (2, "full"), (4, "full")]


def test_many_rows_at_a_time_that_fit_are_compiled_as_they_are(compiled):
    searching, tried = compiled
    given = searching(32, state=4e9, row=1e8).given()
    assert given.fits and given.micro_batches == 1
    assert tried == [(1, "full"), (2, "full"), (32, "full")]


def test_few_rows_at_a_time_are_compiled_at_once(compiled):
    searching, tried = compiled
    assert searching(4, state=4e9, row=1e9).given().fits
    assert tried == [(4, "full")]


def test_where_no_row_fits_the_next_cheaper_remat_is_taken_that_does(compiled):
    """One row takes 20 GB with `projections` and 9 GB with any other policy, two rows 14 GB."""
    searching, tried = compiled
    found = searching(4, state=4e9, row=16e9, remat="projections", saved=5 / 16)
    assert not found.given().fits
    best = found.fitting()
    assert (best.remat, best.micro_batches) == ("attention", 2)
    assert tried == [(4, "projections"), (1, "projections"), (1, "attention"), (2, "attention")]


def test_nothing_fits_where_the_state_alone_does_not(compiled):
    searching, tried = compiled
    found = searching(1, state=40e9, row=1e9, remat="context")
    assert not found.given().fits and found.fitting() is None
    assert tried == [(1, "context"), (1, "full")]


@pytest.mark.slow
def test_memory_grows_with_the_rows_at_a_time_along_a_line_and_micro_batches_stay_a_loop():
    """Eight rows on each of four chips, compiled in eight, four and two parts: the first two tell the third."""
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    config = janus_pro_1b.get_config("text_only:debug").unlock()
    config.dtype, config.attention, config.remat, config.mesh.fsdp = "bfloat16", "xla", "full", 4
    config.train.batch_size, config.data.row_length, config.loss.chunk_size = 32, 512, 512
    compiled = {}
    for rows in (1, 2, 4):
        config.train.micro_batches = 8 // rows
        compiled[rows] = check(config, "v5e-4", 1, {})
        loops = parse(compiled[rows].program.hlo)
        assert not compiled[rows].estimate.unknown_loops
        counts = [
            trip_count(loops, instruction, computation)
            for computation in loops.computations.values()
            for instruction in computation.values()
            if instruction.op == "while"
        ]
        assert 8 // rows in counts
    line = [compiled[rows].needed_bytes for rows in (1, 2, 4)]
    assert line[2] == pytest.approx(line[0] + 3 * (line[1] - line[0]), rel=0.02)
