"""The first sentence of a caption (Janus, section 4.2 shortens some captions to it)."""

import re

# Latin script: the mark ends a sentence before white space, unless a small letter or a digit follows ("approx. 5").
# Chinese and Japanese: the mark always ends a sentence.
_END_OF_SENTENCE = re.compile(r"""[.!?]+["'”’)\]]*(?=\s+[^\s\da-zß-ÿ])|[。！？]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"""["'“‘(\[]*((Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|No|vs|etc)|([A-Z]\.)*[A-Z])\.""")
MIN_SENTENCE_WORDS = 3


def first_sentence(caption: str) -> str:
    """The caption up to the first end of a sentence; the whole caption if there is none.

    A full stop after an abbreviation or an initial ends no sentence. Neither does one after fewer than
    MIN_SENTENCE_WORDS words, since such beginnings ("Fig.", "Vol. 2.") describe nothing. Words are not counted in
    Chinese and Japanese, which are written without spaces.
    """
    caption = caption.strip()
    for end in _END_OF_SENTENCE.finditer(caption):
        sentence = caption[: end.end()]
        words = sentence.split()
        if end[0][0] in "。！？" or (len(words) >= MIN_SENTENCE_WORDS and not _ABBREVIATION.fullmatch(words[-1])):
            return sentence
    return caption
