"""The public names: resolvable, documented, and listed in the docs, no more and no fewer."""

import inspect
import re
from pathlib import Path

import pytest

import thalweg as tw

API = Path(__file__).parent.parent / "docs" / "api.md"


@pytest.mark.parametrize("name", [n for n in tw.__all__ if n != "__version__"])
def test_each_name_resolves_and_has_a_docstring(name):
    thing = getattr(tw, name)
    assert inspect.getdoc(thing), f"tw.{name} has no docstring"


def test_the_docs_list_exactly_the_public_names():
    listed = set(re.findall(r"^- `tw\.([A-Za-z_]+)", API.read_text(), flags=re.MULTILINE))
    assert listed == set(tw.__all__) - {"__version__"}


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(AttributeError, match="no_such_name"):
        tw.no_such_name  # noqa: B018
    assert set(tw.__all__) <= set(dir(tw))


def test_every_public_function_says_what_it_raises_or_returns():
    for name in tw.__all__:
        thing = getattr(tw, name)
        if inspect.isfunction(thing):
            doc = inspect.getdoc(thing)
            assert "Args:" in doc, f"tw.{name} has no Args section"
            assert "Example:" in doc, f"tw.{name} has no runnable example"
