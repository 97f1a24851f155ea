"""What tests of several pages share."""

import browsing
import fonts
import pytest


@pytest.fixture(scope="module", params=[fonts.FIRST])
def browser(request, tmp_path_factory):
    """A Chromium that sees that set of fonts."""
    with browsing.launched(request.param, tmp_path_factory.mktemp("fonts")) as browser:
        yield browser
