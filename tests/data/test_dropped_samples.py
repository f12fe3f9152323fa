import json

import pytest

from janus_jax.data.dropped_samples import (
    MAX_EXAMPLES,
    MAX_NOTES,
    MAX_TEXT,
    OTHER_NOTES,
    DroppedSample,
    DropReport,
    Note,
    NoteCounts,
    Reason,
)
from janus_jax.errors import UserError


def filled(kept, bad):
    report = DropReport()
    for _ in range(kept):
        report.keep()
    for i, reason in enumerate(bad):
        report.drop(DroppedSample(f"source/{reason}/{i}", reason, "why"))
    return report


def test_counts_rate_and_first_examples():
    report = filled(36, [Reason.CORRUPT] * 8 + [Reason.NO_TEXT] * 6)
    assert (report.seen, report.dropped, report.rate) == (50, 14, 0.28)
    assert report.reasons == {Reason.CORRUPT: 8, Reason.NO_TEXT: 6}
    assert [bad.reason for bad in report.examples] == [Reason.CORRUPT] * 8 + [Reason.NO_TEXT] * 2


def test_empty_report_has_rate_zero():
    assert DropReport().rate == 0.0


def test_merging_equals_counting_everything_in_one_report():
    first, second = [Reason.CORRUPT] * 7, [Reason.BAD_JSON] * 7
    merged = filled(3, first)
    merged.merge(filled(4, second))
    assert (merged.seen, merged.dropped) == (21, 14)
    assert merged.reasons == {Reason.CORRUPT: 7, Reason.BAD_JSON: 7}
    assert [bad.reason for bad in merged.examples] == (first + second)[:MAX_EXAMPLES]


def test_merging_does_not_change_or_share_the_other_report():
    total, other = DropReport(), filled(0, [Reason.CORRUPT])
    total.merge(other)
    total.drop(DroppedSample("k", Reason.CORRUPT, ""))
    assert (other.seen, other.reasons[Reason.CORRUPT], len(other.examples)) == (1, 1, 1)


def test_json_round_trip():
    report = filled(5, [Reason.PATH_ESCAPE, Reason.BAD_IMAGE, Reason.PATH_ESCAPE])
    values = json.loads(json.dumps(report.to_json()))
    again = DropReport.from_json(values)
    assert again.to_json() == report.to_json() == values
    assert values["reasons"] == {"path_escape": 2, "bad_image": 1}


def test_memory_is_bounded_and_text_of_damaged_files_is_printable():
    report = DropReport()
    for _ in range(1000):
        report.drop(DroppedSample("k" * 10**5, Reason.BAD_JSON, "a\0b\x1b[31m\ud800\n" + "x" * 10**5))
    encoded = json.dumps(report.to_json()).encode()
    assert len(encoded) < 2 * MAX_EXAMPLES * (6 * MAX_TEXT)
    detail = report.examples[0].detail
    assert detail.isprintable() and detail.startswith("a\ufffdb\ufffd[31m\ufffd\ufffdx")
    assert len(detail) == len(report.examples[0].key) == MAX_TEXT
    report.describe_examples().encode("utf-8")  # a lone surrogate would raise


def test_check_names_the_limit_and_the_first_ten_offenders():
    report = filled(8, [Reason.NO_TEXT] * 12)
    report.check(0.6, "--max_drop_rate")  # at the limit, not above it
    with pytest.raises(UserError, match=r"^--max_drop_rate=0\.5: 12 of 20 samples dropped; first: ") as error:
        report.check(0.5, "--max_drop_rate")
    assert str(error.value).count("no_text (why)") == MAX_EXAMPLES
    report.check(0.0, "--max_drop_rate", at_least=13)


def test_notes_are_counted_by_text_within_a_bound():
    notes = NoteCounts()
    for i in range(3 * MAX_NOTES):
        notes.add(Note(f"key not read: {i}\x1b" + "x" * 10**5))
        notes.add(Note("key not read: 0"))
    total = NoteCounts()
    total.merge(json.loads(json.dumps(notes.to_json())))
    counts = total.to_json()
    assert sum(counts.values()) == 6 * MAX_NOTES and counts["key not read: 0"] == 3 * MAX_NOTES
    assert len(counts) == MAX_NOTES + 1 and counts[OTHER_NOTES] == 2 * MAX_NOTES + 1
    assert all(text.isprintable() and len(text) <= MAX_TEXT for text in counts)


def test_only_a_loss_above_one_percent_is_notable():
    assert filled(99, [Reason.NO_TEXT]).notable_loss("x") == "" == DropReport().notable_loss("x")
    line = filled(97, [Reason.NO_TEXT, Reason.BAD_JSON, Reason.NO_TEXT]).notable_loss("text/0")
    assert line == "text/0 lost 3.0%: 3 of 100 samples dropped (bad_json 1, no_text 2)"
