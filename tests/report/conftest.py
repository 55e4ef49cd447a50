"""The browser of the tests that look at a page in one."""

import pytest
from browser import session


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with session(tmp_path_factory.mktemp("profile")) as started:
        yield started
