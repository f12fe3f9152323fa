import json
import pickle

import numpy as np
import pytest
import tokenizers

from janus_jax.data import prompts
from janus_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from janus_jax.errors import UserError
from tests.helpers.tiny_data import BEGIN, BOS, BYTE_TOKENIZER, END, PAD, byte_ids

TEXTS = ["a handwritten seven", "the digit three", "a drawing of the number nine", "which digit is this?"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, vocab_size=300, extra_special_tokens=("<|User|>",))


def test_training_learns_merges_up_to_the_vocabulary_size(tokenizer):
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode("a handwritten seven")) < len("a handwritten seven") / 2
    assert len(tokenizer.encode("<|User|>: ")) == 4  # BOS, the role, colon, space


@pytest.mark.parametrize("text", ["", "digit", "<|User|>: digit"])
def test_bos_stands_in_front_exactly_once(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
    assert tokenizer.encode(prompts.BOS + text) == ids


def test_bos_of_the_files_own_post_processor_is_not_added_again():
    backend = tokenizers.Tokenizer.from_str(BYTE_TOKENIZER.backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{prompts.BOS} $A {prompts.EOS}",
        special_tokens=[(prompts.BOS, BOS), (prompts.EOS, BYTE_TOKENIZER.eos_id)],
    )
    assert backend.encode("a").ids == [BOS, *byte_ids("a"), BYTE_TOKENIZER.eos_id]
    assert Tokenizer(backend).encode("a") == [BOS, *byte_ids("a")]


def test_special_tokens_in_a_text_are_single_ids():
    text = f"a{prompts.IMAGE_PLACEHOLDER}<|User|>: é{prompts.BEGIN_OF_IMAGE}{prompts.EOS}"
    assert BYTE_TOKENIZER.encode(text) == [BOS, *byte_ids(text)]


@pytest.mark.parametrize("text", ["which digit is this?", " spaces  kept \n", "naïve 数字 🙂"])
def test_decoding_inverts_encoding_and_skips_special_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(np.array(tokenizer.encode(prompts.EOS + text + prompts.PAD))) == text


def test_offsets_point_at_the_text_of_each_token(tokenizer):
    text = f"<|User|>: the digit three{prompts.EOS}which"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and offsets[0] == (0, 0)
    for id, (start, end) in list(zip(ids, offsets, strict=True))[1:]:
        assert tokenizer.backend.decode([id], skip_special_tokens=False) == text[start:end]


def expanded_by_a_list(ids, tokens_per_image):
    out = []
    for id in ids:
        out += [BEGIN] + [id] * tokens_per_image + [END] if id == BYTE_TOKENIZER.image_id else [id]
    return out


@pytest.mark.parametrize("tokens_per_image", [1, 4, 576])
@pytest.mark.parametrize("pattern", ["", "a", "I", "aIb", "IaI", "IIabIcI"])
def test_expansion_of_images_equals_a_list_reference(pattern, tokens_per_image):
    ids = [BYTE_TOKENIZER.image_id if letter == "I" else ord(letter) for letter in pattern]
    out = BYTE_TOKENIZER.expand_images(ids, tokens_per_image)
    assert out.tolist() == expanded_by_a_list(ids, tokens_per_image) and out.dtype == np.int32


def test_unconditional_prompt_keeps_the_first_and_last_token():
    prompt = BYTE_TOKENIZER.encode(f"a cat{prompts.BEGIN_OF_IMAGE}")
    assert BYTE_TOKENIZER.unconditional(prompt) == [BOS, *[PAD] * 5, BEGIN]
    assert BYTE_TOKENIZER.unconditional([BOS, BEGIN]) == [BOS, BEGIN]


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_missing_special_token_is_an_error_that_names_it(token, tmp_path):
    vocabulary = {other: i for i, other in enumerate(SPECIAL_TOKENS) if other != token}
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=None)).to_str())
    with pytest.raises(UserError) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)
    assert [other for other in SPECIAL_TOKENS if other in str(error.value)] == [token]


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 1}', "[1, 2]"])
def test_unreadable_file_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"{path}: not a readable tokenizer.json"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("copy", ["file", "pickle"])
def test_a_copy_encodes_the_same(copy, tokenizer, tmp_path):
    if copy == "file":
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    else:
        again = pickle.loads(pickle.dumps(tokenizer))
    text = f"<|User|>: {prompts.IMAGE_PLACEHOLDER} which digit? ü"
    assert again.encode_with_offsets(text) == tokenizer.encode_with_offsets(text)
    assert again.vocab_size == tokenizer.vocab_size and again.image_id == tokenizer.image_id


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    texts = ["one two three four five"]
    plain = train_tokenizer(texts, 300)
    expected = plain.encode(texts[0])
    plain.backend.enable_truncation(2)
    plain.backend.enable_padding(length=40)
    plain.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode(texts[0]) == expected


def resaved(tmp_path, change):
    """A tokenizer.json of ours whose content `change` has altered."""
    plain = train_tokenizer(TEXTS * 3, vocab_size=300, extra_special_tokens=("<|User|>",))
    content = json.loads(plain.backend.to_str())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path / "tokenizer.json"


def flagged(token, **flags):
    """Changes the flags of an added token."""

    def change(content):
        (found,) = [added for added in content["added_tokens"] if added["content"] == token]
        found |= flags

    return change


ONE_SPACE = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
PIECES = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
AROUND_IMAGE = f"around {prompts.IMAGE_PLACEHOLDER}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        # As a version of transformers saves a byte-level file that it took for a SentencePiece one.
        (
            lambda content: content.update(pre_tokenizer=METASPACE, decoder={"type": "Sequence", "decoders": PIECES}),
            ["spaces", "line breaks", "Chinese", "emoji"],
        ),
        (lambda content: content.update(pre_tokenizer=None), ["spaces", "accents", "Chinese", "emoji"]),
        (lambda content: content.update(decoder=None), ["spaces", "line breaks", "accents"]),
        (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), ["accents", "digits"]),
        (lambda content: content.update(normalizer={"type": "Lowercase"}), ["accents"]),
        (lambda content: content.update(normalizer={"type": "NFKC"}), ["Chinese"]),
        (
            lambda content: content.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
            ["spaces"],
        ),
        (lambda content: content["model"]["vocab"].pop("ð"), ["emoji"]),  # the first byte of most of them
        (flagged(prompts.IMAGE_PLACEHOLDER, lstrip=True), [f"spaces {AROUND_IMAGE}", f"line breaks {AROUND_IMAGE}"]),
        (flagged("<|User|>", rstrip=True), ["spaces around <|User|>"]),
        (flagged(prompts.EOS, single_word=True), [f"digits around {prompts.EOS}"]),
        (
            lambda content: content.update(
                added_tokens=[t for t in content["added_tokens"] if t["content"] != prompts.IMAGE_PLACEHOLDER]
            ),
            [f"spaces {AROUND_IMAGE}", f"emoji {AROUND_IMAGE}"],
        ),
    ],
)
def test_a_file_that_changes_text_is_refused_with_what_changes(change, named, tmp_path):
    path = resaved(tmp_path, change)
    with pytest.raises(UserError) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)
    assert [name for name in named if f"{name}: " not in str(error.value)] == []


@pytest.mark.parametrize("vocab_size", [262, 322])
def test_however_small_our_own_tokenizers_are_lossless(vocab_size, tmp_path):
    train_tokenizer(["a few words"], vocab_size).save(tmp_path / "tokenizer.json")
    text = " Ünï\r\n\u2028 ٣ \x00 中文 👩‍🔬"
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lossless_tokenizer_of_another_kind_is_accepted(tmp_path):
    """SentencePiece's way to write spaces, with bytes for what has no piece, as of Llama."""
    bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab = bytes_ | {token: 256 + i for i, token in enumerate([*SPECIAL_TOKENS, "▁", "a", "▁a"])}
    model = tokenizers.models.BPE(vocab, [("▁", "a")], byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").decode([257 + 6, 258 + 6]) == "a a"
