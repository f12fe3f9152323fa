"""Regular expressions that come from strangers. Some would take years to match, such as `(a+)+$`."""

import json
import subprocess
import sys
from collections.abc import Collection, Mapping

from janus_jax.errors import UserError

SECONDS = 30.0  # A harmless pattern takes milliseconds for the modules of a model.
# Python's matcher cannot be stopped from within its process.
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
json.dump([[name for name in names if re.fullmatch(pattern, name)] for pattern in patterns], sys.stdout)
"""


def matching_names(patterns: Collection[str], names: Collection[str], origin: str) -> Mapping[str, frozenset[str]]:
    """Pattern -> the names that it matches whole, found in a process of its own, which gets a limited time.

    Args:
        patterns: valid regular expressions.
        origin: where they come from, for messages.

    Raises:
        UserError: it takes longer.
    """
    if not patterns:
        return {}
    question = json.dumps([list(patterns), list(names)])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH], input=question, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{origin}: its regular expressions take more than {SECONDS:g} s to match, expected harmless ones"
        ) from error
    if done.returncode:
        raise UserError(f"{origin}: its regular expressions cannot be matched ({done.stderr.strip()[-200:]})")
    return dict(zip(patterns, map(frozenset, json.loads(done.stdout)), strict=True))
