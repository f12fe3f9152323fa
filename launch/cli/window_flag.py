"""The flag --window of the commands that generate image codes."""

from absl import flags

WINDOW = flags.DEFINE_string(
    "window",
    "auto",
    "Codes: how many codes of an image a pass through the model reads, all but the first of them guessed. The images "
    "stay the same, but for rounding, and take fewer passes. auto is as many as cost the device about nothing, 1 "
    "guesses none.",
)


def window() -> int | str:
    """The option `window` of `RequestReader.codes`, which checks it."""
    given = WINDOW.value or ""
    try:
        return int(given)
    except ValueError:
        return given
