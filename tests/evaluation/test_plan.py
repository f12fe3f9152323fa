"""The division of requests into batches."""

import pytest

from janus_jax.evaluation.benchmark import ImageRequest, Question
from janus_jax.evaluation.plan import make_plan
from tests.helpers.yes_no_benchmark import ColourImage, open_yes_no


def question(index, prompt, *images):
    return Question(index, str(index), prompt, tuple(ColourImage(name, "red") for name in images), "yes", "")


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    return open_yes_no(tmp_path_factory.mktemp("plan") / "questions.txt", count=101).requests


@pytest.mark.parametrize("rows", [1, 4, 16, 1000])
def test_every_request_is_in_one_batch_and_batches_are_no_larger_than_asked(requests, rows):
    plan = make_plan(requests, rows)
    assert sorted(position for batch in plan.batches for position in batch.positions) == list(range(101))
    assert plan.num_requests == 101
    assert [batch.number for batch in plan.batches] == list(range(len(plan.batches)))
    for batch in plan.batches:
        assert 1 <= len(batch.groups) <= rows
        assert len({len(requests[position].images) for position in batch.positions}) == 1


def test_equal_questions_are_one_group_and_other_images_or_prompts_are_not():
    asked = [question(*entry) for entry in [(5, "a", "x"), (6, "a", "y"), (7, "a", "x"), (8, "b", "x"), (9, "a")]]
    plan = make_plan(asked, rows=10)
    groups = [group for batch in plan.batches for group in batch.groups]
    assert groups == [(0, 2), (1,), (3,), (4,)]
    assert (plan.num_requests, plan.num_distinct) == (5, 4)


def test_the_longest_prompts_with_the_most_images_come_first():
    asked = [question(0, "a", "x"), question(1, "b" * 200, "x"), question(2, "c", "x", "y"), question(3, "d" * 200)]
    plan = make_plan(asked, rows=1)
    assert [batch.groups for batch in plan.batches] == [((2,),), ((1,),), ((0,),), ((3,),)]


def test_equal_requests_for_images_stay_apart_and_fill_batches_by_images():
    plan = make_plan([ImageRequest(index, "", "a cat", 4) for index in range(5)], rows=9)
    assert [batch.groups for batch in plan.batches] == [((0,), (1,)), ((2,), (3,)), ((4,),)]
    assert len(make_plan([ImageRequest(0, "", "a", 4), ImageRequest(1, "", "a", 4)], rows=3).batches) == 2


def test_the_hash_tells_other_plans(requests):
    assert make_plan(requests, 4).sha256 == make_plan(requests, 4).sha256
    others = [make_plan(requests, 5), make_plan(requests[:-1], 4), make_plan(requests[::-1], 4)]
    assert len({plan.sha256 for plan in [make_plan(requests, 4), *others]}) == 4
