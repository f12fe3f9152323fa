"""The remaining time of a whole quickstart follows from the time that has passed and the proportions of its parts."""

from types import SimpleNamespace

import pytest

from examples.digits.progress import LINES, RunProgress
from examples.digits.recipes import RECIPES

TYPICAL = {"data": 10.0, "stage1": 20.0, "stage2": 30.0}


def test_a_machine_of_half_the_speed_takes_twice_what_is_left():
    progress = RunProgress(TYPICAL, {"data": 20.0})
    assert progress.remaining("stage1", done=0.5, elapsed=20.0) == pytest.approx(2 * (10 + 30))
    assert progress.remaining("stage1", done=1.0, elapsed=40.0) == pytest.approx(2 * 30)


def test_parts_of_an_interrupted_run_count_what_they_took_before():
    progress = RunProgress(TYPICAL, {"data": 10.0, "stage1": 20.0, "stage2": 15.0})
    assert progress.remaining("stage2", done=0.75, elapsed=22.5) == pytest.approx(7.5)


def test_a_phase_prints_its_lines_between_two_steps(capsys):
    run = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(num_steps=40)))
    action = RunProgress(TYPICAL, {}).action("stage1")(run, None)
    for step in range(1, 41):
        moment = SimpleNamespace(step=step, is_last=step == 40)
        if action.is_due(moment):
            action(moment)
    assert capsys.readouterr().out.count("whole run: about") == LINES - 1


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_part_of_a_recipe_has_a_share(recipe):
    assert list(recipe.typical_seconds) == ["data", *recipe.experiment.PHASES, "evaluation"]
