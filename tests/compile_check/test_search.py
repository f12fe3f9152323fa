"""What fits of a batch that is too large, and that large programs are not compiled to learn it."""

import jax
import pytest

from configs import janus_pro_1b
from janus_jax.compile_check import search
from janus_jax.compile_check.check import too_large
from janus_jax.compile_check.hlo import parse, trip_count
from janus_jax.compile_check.search import Search
from janus_jax.hardware import Machine
from janus_jax.training.plan import make_plan
from tests.compile_check.test_check import make_check

ROOM = 16 << 30  # bytes of a v5e


@pytest.fixture
def compiled(monkeypatch):
    """Makes searches, and the rows at a time and remat of every compilation.

    A step takes `state + row * rows` bytes, with a cheaper remat `saved` times the second part. The remat is automatic
    where `auto` says what is taken for each number of rows.
    """
    tried = []

    def searching(rows, state, row, remat="full", saved=1.0, auto=None):
        config = janus_pro_1b.get_config("text_only:debug")
        config.train.batch_size, config.remat = rows, "auto" if auto else remat

        def choose(config, devices, compare=False):
            if auto:
                config = config.copy_and_resolve_references()
                config.remat = auto[rows // config.train.micro_batches]
            return make_plan(config, devices), None

        def activations(config, _=None):
            of_row = row * (1 if config.remat == remat else saved)
            return int(of_row * (rows // config.train.micro_batches))

        def pretend(config, plan, topology, options, whole):
            tried.append((rows // config.train.micro_batches, config.remat))
            needed = int(state) + activations(config)
            result = too_large(config, plan, topology, f"Used {needed / 2**30:.2f}G of 15.75G hbm")
            if needed > ROOM:
                return result
            parts = config.train.micro_batches
            return make_check(rows=rows, micro_batches=parts, remat=config.remat, needed_bytes=needed)

        monkeypatch.setattr(search, "check_plan", pretend)
        monkeypatch.setattr(search, "predicted_peak", activations)
        monkeypatch.setattr(search, "plan_with_remat", choose)
        return Search(config, "v5e-4", 1, {})

    monkeypatch.setattr(search, "topology_devices", lambda *_: jax.devices()[:1])
    monkeypatch.setattr(search, "machine_of", lambda _: Machine("TPU v5 lite", 1, ((0, 0, 0),)))
    return searching, tried


def test_many_rows_at_a_time_are_not_compiled_to_learn_that_they_do_not_fit(compiled):
    """Six rows at a time would fit, but do not divide the 32."""
    searching, tried = compiled
    given = (found := searching(32, state=4e9, row=2e9)).given()
    assert not given.fits and given.program is None and "32 rows at a time on a chip need about 68 GB" in given.reason
    assert [(check.micro_batches, check.needed_bytes) for check in found.fitting()] == [(32, 6e9), (8, 12e9)]
    assert tried == [(1, "full"), (4, "full")]


def test_many_rows_at_a_time_that_fit_are_compiled_as_they_are(compiled):
    searching, tried = compiled
    given = searching(32, state=4e9, row=1e8).given()
    assert given.fits and given.micro_batches == 1
    assert tried == [(1, "full"), (32, "full")]


def test_few_rows_at_a_time_are_compiled_at_once(compiled):
    searching, tried = compiled
    assert searching(4, state=4e9, row=1e9).given().fits
    assert tried == [(4, "full")]


def test_where_no_row_fits_the_next_cheaper_remat_is_taken_that_does(compiled):
    """One row takes 20 GB with `projections` and 9 GB with any other policy, two rows 14 GB."""
    searching, tried = compiled
    found = searching(4, state=4e9, row=16e9, remat="projections", saved=5 / 16)
    assert not found.given().fits
    assert [(check.remat, check.micro_batches) for check in found.fitting()] == [("attention", 4), ("attention", 2)]
    assert tried == [(4, "projections"), (1, "projections"), (1, "attention"), (2, "attention")]


def test_automatic_remat_is_that_of_the_rows_that_are_tried(compiled):
    """One row takes 16 GB with `projections`, and with any other policy two take 11.2 and four 18.4 GB."""
    searching, tried = compiled
    found = searching(
        4, state=4e9, row=12e9, remat="projections", saved=0.3, auto={4: "full", 2: "attention", 1: "projections"}
    )
    assert not found.given().fits
    assert [(check.remat, check.micro_batches) for check in found.fitting()] == [("projections", 4), ("attention", 2)]
    assert tried == [(4, "full"), (1, "projections"), (2, "attention")]


def test_nothing_fits_where_the_state_alone_does_not(compiled):
    searching, tried = compiled
    found = searching(8, state=40e9, row=1e9, remat="context")
    assert not found.given().fits and not list(found.fitting())
    assert tried == [(1, "context"), (1, "full")]


@pytest.mark.slow
def test_what_is_expected_to_fit_does_and_micro_batches_stay_a_loop():
    """Of eight rows on each of four chips, one at a time tells what four at a time need at most."""
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    config = janus_pro_1b.get_config("text_only:debug").unlock()
    config.dtype, config.attention, config.remat, config.mesh.fsdp = "bfloat16", "xla", "full", 4
    config.train.batch_size, config.data.row_length, config.loss.chunk_size = 32, 512, 512
    found = Search(config, "v5e-4", 1, {})
    check = found.compiled(4, "full")
    module = parse(check.program.hlo)
    loops = [(inst, part) for part in module.computations.values() for inst in part.values() if inst.op == "while"]
    assert 2 in [trip_count(module, inst, part) for inst, part in loops] and not check.estimate.unknown_loops
    assert found.expected_bytes(4, "full", found.compiled(1, "full")) >= 0.97 * check.needed_bytes
