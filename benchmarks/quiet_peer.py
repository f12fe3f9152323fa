"""Keeps transformers from logging, so that a suite prints its own lines only."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_peer() -> Iterator[None]:
    """Shows no warnings and progress bars of transformers meanwhile, which logs several lines for every call."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
