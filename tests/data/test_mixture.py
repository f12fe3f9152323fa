import json

import pytest

from janus_jax.data.mixture import StrideScheduler, check_schedule, ever_positive, value_at
from janus_jax.errors import UserError

RATIO = {"understand": 5.0, "text": 1.0, "generate": 4.0}


def served(turns, count, step=0, amount=lambda name, i: 1):
    names = []
    for i in range(count):
        names.append(turns.next(step))
        turns.served(names[-1], amount(names[-1], i))
    return names


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.9])
def test_shares_are_exact_to_one_sample_at_any_moment(offset):
    names = served(StrideScheduler(RATIO, offset), 1000)
    for count in range(1, 1001):
        for name, weight in RATIO.items():
            assert abs(names[:count].count(name) - count * weight / 10) <= 1.5


def test_shares_over_many_shards_are_within_a_percent():
    """2,000 samples from 8 streams that each give only 250."""
    names = sum((served(StrideScheduler(RATIO, shard / 8), 250) for shard in range(8)), [])
    for name, weight in RATIO.items():
        assert names.count(name) == pytest.approx(200 * weight, rel=0.01)


def test_shares_count_what_was_taken():
    """Tokens: an image of 600 counts as much as twelve texts of 50."""
    size = {"text": 50, "generate": 600}
    names = served(StrideScheduler({"text": 1.0, "generate": 1.0}), 1300, amount=lambda name, i: size[name])
    assert names.count("text") == pytest.approx(12 * names.count("generate"), abs=12)


def test_a_new_weight_holds_from_its_step_and_does_not_make_up_for_the_past():
    turns = StrideScheduler({"a": ((0, 3.0), (10, 1.0)), "b": 1.0, "c": ((10, 2.0),)})
    before = served(turns, 400, step=9)
    assert (before.count("a"), before.count("c")) == (300, 0)
    after = served(turns, 400, step=10)
    assert (after.count("a"), after.count("b"), after.count("c")) == (100, 100, 200)


def test_a_weight_that_ends_leaves_nothing_to_serve():
    turns = StrideScheduler({"a": ((0, 1.0), (5, 0.0))})
    assert (turns.next(4), turns.next(5)) == ("a", None)


@pytest.mark.parametrize("done", [0, 1, 7, 500])
def test_restored_turns_go_on_alike(done):
    amounts = lambda name, i: 1 + (7 * i) % 13 / 3  # noqa: E731
    turns, restored = StrideScheduler(RATIO, 0.3), StrideScheduler(RATIO, 0.3)
    served(turns, done, amount=amounts)
    restored.set_state(json.loads(json.dumps(turns.get_state())))
    assert served(restored, 300, amount=amounts) == served(turns, 300, amount=amounts)


def test_value_of_a_schedule():
    schedule = ((2, 1.0), (5, 0.0), (9, 3.0))
    assert [value_at(schedule, step) for step in (0, 1, 2, 4, 5, 8, 9, 1000)] == [0, 0, 1, 1, 0, 0, 3, 3]
    assert value_at(2, 17) == 2.0


@pytest.mark.parametrize(
    ("schedule", "expected"), [(0.0, False), (0.1, True), (((0, 0.0), (3, 1.0)), True), (((0, 0.0),), False)]
)
def test_whether_a_schedule_is_ever_positive(schedule, expected):
    assert ever_positive(check_schedule("f", schedule)) is expected


@pytest.mark.parametrize(
    "schedule",
    [
        -1.0,
        float("nan"),
        float("inf"),
        (),
        "x",
        None,
        ((0, -1.0),),
        ((5, 1.0), (5, 2.0)),
        ((3, 1.0), (0, 1.0)),
        ((-1, 1.0),),
        (1.0, 2.0),
    ],
)
def test_what_is_no_schedule_is_refused_by_its_field(schedule):
    with pytest.raises(UserError, match=r"^data\.ratio\.text="):
        check_schedule("data.ratio.text", schedule)
