import dataclasses
import itertools

import msgpack
import numpy as np
import pytest

from janus_jax.batches import Modality
from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.images import generation_pixels, understanding_pixels
from janus_jax.data.prompts import STYLES, SYSTEM_PROMPT, Message
from janus_jax.data.record_reader import StoredRecord
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import check_supervision
from janus_jax.data.tokenizer import SPECIAL_TOKENS
from janus_jax.errors import UserError
from tests.helpers.tiny_data import (
    BEGIN,
    BOS,
    BYTE_TOKENIZER,
    END,
    EOS,
    PAD,
    PLACEHOLDER,
    alternate,
    byte_ids,
    document,
    encoded,
    flat_png,
    generate,
    make_builder,
    random_image,
    text,
    understand,
)

TEXT, FEATURE, CODE = (int(kind) for kind in (Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE))


def build(record, **settings):
    return make_builder(**settings).build(record, np.random.default_rng(0))[0]


def supervised_text(sample):
    """The text that carries loss."""
    ids = sample["targets"][sample["text_weights"] > 0]
    return BYTE_TOKENIZER.backend.decode(ids.tolist(), skip_special_tokens=False)


def check_sample(sample, tokens, modality, text_weights, image_weights, positions=None):
    expected = {"tokens": tokens, "modality": modality, "text_weights": text_weights, "image_weights": image_weights}
    expected["positions"] = list(range(len(tokens))) if positions is None else positions
    for name, values in expected.items():
        assert sample[name].tolist() == values, name
    dtypes = [sample[name].dtype for name in (*expected, "targets", "und_pixels", "gen_pixels")]
    assert dtypes == [np.int32, np.int8, np.float32, np.float32, np.int32, np.int32, np.uint8, np.uint8]


def test_understanding_sample_written_by_hand():
    image = random_image(20, 10)
    sample = build(understand("<image>\nA?", "no", images=[encoded(image)]), supervision="answers")
    before, after = byte_ids("<|User|>: "), byte_ids(f"\nA?\n\n<|Assistant|>: no{EOS}")
    check_sample(
        sample,
        tokens=[BOS, *before, BEGIN, 0, 0, 0, 0, END, *after],
        modality=[TEXT] * 5 + [FEATURE] * 4 + [TEXT] * (1 + len(after)),
        text_weights=[0.0] * (5 + 4 + len(after) - 4) + [1.0] * 4 + [0.0],  # " no" and EOS, one position earlier
        image_weights=[0.0] * (10 + len(after)),
    )
    assert sample["targets"][9:].tolist() == [*after, 0]
    np.testing.assert_array_equal(sample["und_pixels"], understanding_pixels(image, 16)[None])
    assert sample["gen_pixels"].shape == (0, 8, 8, 3)


def test_generation_sample_written_by_hand():
    image = random_image(20, 10)
    sample = build(generate("a cat", encoded(image)))
    prompt = [BOS, *byte_ids("<|User|>: a cat\n\n<|Assistant|>:"), BEGIN]
    check_sample(
        sample,
        tokens=[*prompt, 0, 0, 0, 0],
        modality=[TEXT] * len(prompt) + [CODE] * 4,
        text_weights=[0.0] * (len(prompt) + 4),
        image_weights=[0.0] * (len(prompt) - 1) + [1.0] * 4 + [0.0],  # begin-of-image predicts the first code
    )
    np.testing.assert_array_equal(sample["gen_pixels"], generation_pixels(image, 8)[None])
    assert sample["und_pixels"].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("supervision", ["all", "answers"])
def test_document_is_supervised_whole_and_ends_with_eos(supervision):
    sample = build(document(" Once. \n"), supervision=supervision)
    ids = byte_ids(f"Once.{EOS}")
    check_sample(sample, [BOS, *ids], [TEXT] * 7, [1.0] * 6 + [0.0], [0.0] * 7)
    assert sample["targets"].tolist() == [*ids, 0]


def test_answers_are_supervised_with_their_end_of_sentence():
    record = understand("<image> x?", "yes é 猫", "and <image>?", "no", images=[flat_png(1), flat_png(2)])
    sample = build(record, supervision="answers", row_length=128)
    assert supervised_text(sample) == f" yes é 猫{EOS} no{EOS}"
    assert sample["und_pixels"][:, 8, 8, 0].tolist() == [1, 2]


def test_all_text_is_supervised_but_no_part_of_an_image():
    sample = build(understand("<image>\nA?", "no", images=[flat_png(1)]), supervision="all")
    assert supervised_text(sample) == f"<|User|>: \nA?\n\n<|Assistant|>: no{EOS}"
    predicted = sample["targets"][sample["text_weights"] > 0]
    assert not {BEGIN, END, BYTE_TOKENIZER.image_id} & set(predicted.tolist())


def test_learned_merges_do_not_blur_the_borders_of_answers():
    from janus_jax.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["<|Assistant|>: yes\n\n: yes: no"] * 5, 320)
    sample = build(text("q", "yes", "r", "no"), tokenizer=tokenizer, supervision="answers", row_length=128)
    ids = sample["targets"][sample["text_weights"] > 0].tolist()
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == f" yes{EOS} no{EOS}"


def test_system_prompt_of_the_style_or_of_the_record_is_used():
    record = text("q", "a")
    sample = build(record, style=STYLES["janus"], row_length=512)
    assert sample["tokens"].tolist() == [BOS, *byte_ids(f"{SYSTEM_PROMPT}\n\nUser: q\n\nAssistant: a{EOS}")]
    own = Record(task="text", messages=(Message("system", "S"), *record.messages), key="k")
    sample = build(own, style=STYLES["janus"], supervision="answers")
    assert sample["tokens"].tolist() == [BOS, *byte_ids(f"S\n\nUser: q\n\nAssistant: a{EOS}")]
    assert supervised_text(sample) == f" a{EOS}"


def test_image_marker_in_a_text_sample_is_just_text():
    sample = build(text("what is <image>?", "a tag"))
    assert sample["tokens"].tolist() == [BOS, *byte_ids(f"<|User|>: what is <image>?\n\n<|Assistant|>: a tag{EOS}")]
    assert (sample["modality"] == TEXT).all()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropped_condition_keeps_bos_begin_of_image_and_the_length(probability):
    kept = build(generate("a cat", flat_png(1)))
    sample = build(generate("a cat", flat_png(1)), drop_condition=probability)
    length = len(kept["tokens"]) - 4
    expected = [BOS, *[PAD] * (length - 2), BEGIN, 0, 0, 0, 0] if probability else kept["tokens"].tolist()
    assert sample["tokens"].tolist() == expected
    for name in ("modality", "image_weights", "text_weights", "gen_pixels"):
        np.testing.assert_array_equal(sample[name], kept[name])


def test_condition_is_dropped_as_often_as_asked_and_as_the_generator_says():
    builder, record = make_builder(drop_condition=0.3), generate("a cat", flat_png(1))
    dropped = [PAD in builder.build(record, np.random.default_rng(seed))[0]["tokens"] for seed in range(600)]
    assert abs(np.mean(dropped) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 600)
    again = [PAD in builder.build(record, np.random.default_rng(seed))[0]["tokens"] for seed in range(50)]
    assert again == dropped[:50]


BOS_TEXT = SPECIAL_TOKENS[0]
BAD = {
    "prompt without room for an answer": (
        text("x" * 63, "a", key="k/1"),
        Reason.TOO_LONG,
        "74 tokens and 0 images; a row holds 64 and 2",
    ),
    "too many images": (
        understand("<image><image><image>", "a", images=[flat_png(1)] * 3, key="k/1"),
        Reason.TOO_LONG,
        "29 tokens and 3 images; a row holds 64 and 2",
    ),
    "caption without room for its image": (
        generate("x" * 52, flat_png(1), key="k/1"),
        Reason.TOO_LONG,
        "65 tokens and an image; a row holds 64 and 1",
    ),
    "literal placeholder in a question": (
        understand(f"<image> {PLACEHOLDER}", "a", images=[flat_png(1)], key="k/1"),
        Reason.SPECIAL_TOKEN,
        f"the text contains a literal {PLACEHOLDER}",
    ),
    "begin of an image in a caption": (
        generate("a <begin_of_image>", flat_png(1), key="k/1"),
        Reason.SPECIAL_TOKEN,
        "the text contains a literal <begin_of_image>",
    ),
    "end of sentence in an answer": (text("q", f"a{EOS}b", key="k/1"), Reason.SPECIAL_TOKEN, EOS),
    "end of sentence in a document": (document(f"a{EOS}b", key="k/1"), Reason.SPECIAL_TOKEN, EOS),
    "another turn in a question": (text("q <|Assistant|>: a", "b", key="k/1"), Reason.SPECIAL_TOKEN, "<|Assistant|>"),
    "a token in a system message": (
        Record(task="text", messages=(Message("system", BOS_TEXT), *alternate(("q", "a"))), key="k/1"),
        Reason.SPECIAL_TOKEN,
        BOS_TEXT,
    ),
    "unreadable image": (generate("a", b"GIF?", key="k/1"), Reason.BAD_IMAGE, "not a readable image"),
}


@pytest.mark.parametrize(("record", "reason", "detail"), BAD.values(), ids=BAD.keys())
def test_bad_record_is_named_with_its_reason(record, reason, detail):
    bad = make_builder()(StoredRecord("file:3", record.serialize()), np.random.default_rng(0))
    assert (bad.key, bad.reason) == ("k/1", reason) and detail in bad.detail


def test_role_words_that_are_no_tokens_are_just_text():
    assert len(build(text("User: q", "Assistant: a"), style=STYLES["janus_plain"])["tokens"]) > 20


def test_no_order_of_roles_stops_the_stream():
    """Every conversation of up to four messages is a sample, or is refused as a record."""
    builder, kept = make_builder(), []
    for count in range(5):
        for roles in itertools.product(("system", "user", "assistant"), repeat=count):
            messages = [[role, "<image>" if i == count - 1 else "q"] for i, role in enumerate(roles)]
            for task in ("text", "understand", "generate"):
                images = [] if task == "text" or not count else [flat_png(1)]
                payload = {"task": task, "messages": messages, "images": images, "key": "k"}
                result = builder(StoredRecord("f:0", msgpack.packb(payload)), np.random.default_rng(0))
                if isinstance(result, DroppedSample):
                    assert result.reason is Reason.BAD_RECORD
                else:
                    kept.append((task, " ".join(role[0] for role in roles)))
    conversations = ["u a", "s u a", "u a u a"]
    assert sorted(kept) == sorted(
        [("text", "a"), ("generate", "u a")]
        + [(task, roles) for task in ("text", "understand") for roles in conversations]
    )


def test_stored_codes_are_the_tokens_and_the_targets_of_the_image():
    record = generate("a cat", flat_png(1)).with_codes(np.array([3, 1, 31, 0]))
    sample = build(dataclasses.replace(record, images=()), stored_codes=True)
    computed = build(generate("a cat", flat_png(1)))
    assert sample["tokens"][-4:].tolist() == [3, 1, 31, 0]
    np.testing.assert_array_equal(sample["tokens"][:-4], computed["tokens"][:-4])
    assert sample["targets"][sample["image_weights"] > 0].tolist() == [3, 1, 31, 0]
    assert "gen_pixels" not in sample


@pytest.mark.parametrize(
    ("record", "stored_codes", "detail"),
    [
        (generate("a", flat_png(1)), True, "stored_codes is True"),
        (generate("a", flat_png(1)).with_codes(np.arange(5)), True, "5 stored codes up to 4, expected 4 below 32"),
        (generate("a", flat_png(1)).with_codes(np.array([0, 1, 2, 32])), True, "4 stored codes up to 32"),
        (
            dataclasses.replace(generate("a", b"").with_codes(np.arange(4)), images=()),
            False,
            "stored_codes is False",
        ),
    ],
)
def test_codes_that_are_not_those_of_the_model_are_named(record, stored_codes, detail):
    bad = make_builder(stored_codes=stored_codes)(StoredRecord("f:0", record.serialize()), np.random.default_rng(0))
    assert detail in bad.detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xc1", Reason.BAD_RECORD),
        (understand("<image>", "a").serialize(), Reason.BAD_RECORD),
        (None, Reason.CORRUPT),
    ],
    ids=["no record", "broken rule", "wrong checksum"],
)
def test_unreadable_record_is_named_by_its_place(data, reason):
    bad = make_builder()(StoredRecord("file:3", data), np.random.default_rng(0))
    assert (bad.key, bad.reason) == ("file:3", reason)


def test_the_longest_sample_that_fits_is_kept_whole():
    sample, truncated = make_builder().build(document("x" * 62), np.random.default_rng(0))
    assert len(sample["tokens"]) == 64 and not truncated
    assert sample["tokens"][-1] == byte_ids(EOS)[0]


def test_a_document_that_does_not_fit_is_cut_at_the_end_of_the_row():
    sample, truncated = make_builder().build(document("x" * 63), np.random.default_rng(0))
    assert truncated and sample["tokens"].tolist() == [BOS, *byte_ids("x" * 63)]
    assert sample["text_weights"].tolist() == [1.0] * 63 + [0.0]


@pytest.mark.parametrize("supervision", ["all", "answers"])
def test_a_conversation_that_does_not_fit_ends_with_its_last_whole_answer(supervision):
    record = understand(
        "<image>q", "yes", "r<image>", "no", "more?", "x" * 40, images=[flat_png(1), flat_png(2)], key="k"
    )
    whole = understand("<image>q", "yes", "r<image>", "no", images=[flat_png(1), flat_png(2)])
    builder = make_builder(row_length=91, supervision=supervision)
    sample, truncated = builder.build(record, np.random.default_rng(0))
    expected, _ = builder.build(whole, np.random.default_rng(0))
    assert truncated
    for name in expected:
        np.testing.assert_array_equal(sample[name], expected[name], err_msg=name)


@pytest.mark.parametrize(("row_length", "slots"), [(37, 2), (128, 1)], ids=["no room", "no slot"])
def test_an_image_that_does_not_fit_is_left_out_with_its_turn(row_length, slots):
    record = understand("<image>q", "yes", "r<image>", "no", images=[flat_png(1), flat_png(2)])
    builder = make_builder(row_length=row_length, understanding_slots=slots)
    sample, truncated = builder.build(record, np.random.default_rng(0))
    expected = build(understand("<image>q", "yes", images=[flat_png(1)]))
    assert truncated
    for name in expected:
        np.testing.assert_array_equal(sample[name], expected[name], err_msg=name)


def test_the_first_answer_is_cut_when_it_does_not_fit():
    sample, truncated = make_builder(supervision="answers").build(
        understand("<image>q", "x" * 99, images=[flat_png(1)]), np.random.default_rng(0)
    )
    assert truncated and len(sample["tokens"]) == 64 and len(sample["und_pixels"]) == 1
    said = supervised_text(sample)
    assert said == " " + "x" * (len(said) - 1) and len(said) > 20


def test_first_sentence_is_kept_as_often_as_asked():
    record = generate("A grey cat. It sleeps on 1.5 mats!", flat_png(1))
    texts = {
        probability: [
            BYTE_TOKENIZER.backend.decode(
                make_builder(first_sentence=probability, row_length=128)
                .build(record, np.random.default_rng(seed))[0]["tokens"]
                .tolist()
            )
            for seed in range(300)
        ]
        for probability in (0.0, 0.25, 1.0)
    }
    short = [["sleeps" not in text for text in texts[p]] for p in (0.0, 0.25, 1.0)]
    assert not any(short[0]) and all(short[2])
    assert abs(np.mean(short[1]) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 300)
    assert all("A grey cat." in text for text in texts[1.0])


def test_supervision_has_two_values():
    assert [check_supervision(value) for value in ("all", "answers")] == ["all", "answers"]
    with pytest.raises(UserError, match=r"data\.supervision='some' is not one of"):
        check_supervision("some")


def test_messages_of_a_question_are_not_changed_in_the_record():
    record = understand("<image>\nA?", "no", images=[flat_png(1)])
    copy = dataclasses.replace(record)
    build(record)
    assert record == copy and record.messages == alternate(("<image>\nA?", "no"))


# JanusFlow


def test_flow_understanding_also_takes_the_place_of_begin_of_image():
    record = understand("<image>\nA?", "no", images=[encoded(random_image(20, 10))])
    plain, flow = build(record, supervision="answers"), build(record, supervision="answers", flow=True)
    begin = plain["tokens"].tolist().index(BEGIN)
    assert flow["tokens"][begin] == 0 and flow["modality"][begin : begin + 6].tolist() == [FEATURE] * 5 + [TEXT]
    others = np.arange(len(plain["tokens"])) != begin
    for name in ("tokens", "modality", "targets"):
        np.testing.assert_array_equal(flow[name][others], plain[name][others])
    np.testing.assert_array_equal(flow["text_weights"], plain["text_weights"])


@pytest.mark.parametrize("dropped", [False, True])
def test_flow_sample_written_by_hand(dropped):
    """An image has four places, the time and three latents, which keep their positions when the caption is dropped."""
    image = random_image(20, 10)
    sample = build(generate("a cat", encoded(image)), flow=True, drop_condition=float(dropped))
    prompt = [BOS, *byte_ids("<|User|>: a cat\n\n<|Assistant|>:")]  # the time has the place of begin-of-image
    seen = 1 if dropped else len(prompt)
    check_sample(
        sample,
        tokens=[*prompt[:seen], 0, 0, 0, 0],
        modality=[*[TEXT] * seen, *[CODE] * 4],
        text_weights=[0.0] * (seen + 4),
        image_weights=[0.0] * (seen + 1) + [1.0] * 3,
        positions=[*range(seen), *range(len(prompt), len(prompt) + 4)],
    )
    np.testing.assert_array_equal(sample["gen_pixels"], generation_pixels(image, 8)[None])
