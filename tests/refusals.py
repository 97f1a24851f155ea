"""What every error of this package has in common: it is one line that begins with its name."""

from contextlib import contextmanager

import pytest


@contextmanager
def refused(words, kind=ValueError):
    """What is inside must raise that kind of error: one line, "thinkback: ...", that holds words.

    The words are a regular expression.
    """
    with pytest.raises(kind, match=words) as caught:
        yield caught
    text = str(caught.value)
    assert text.startswith("thinkback: "), text
    assert "\n" not in text, text
