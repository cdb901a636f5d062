"""The page stands alone, escapes what it shows, and says what was run."""

import base64
import re
from html.parser import HTMLParser

import pytest

from dfa_jax.report import page

VOID = {"meta", "img", "source", "br"}
IMAGES = {"light": b"by day", "dark": b"by night"}


class Reader(HTMLParser):
    """Collects addresses and unbalanced tags."""

    def __init__(self):
        super().__init__()
        self.addresses, self.tags, self.open = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = ("src", "srcset", "href", "data", "action", "poster")
        self.addresses += [value for name, value in attrs if name in names]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def html(recipe, records):
    return page.html(recipe, records, IMAGES)


def test_nothing_is_loaded_from_elsewhere(html):
    """Oracle: absence; every address is data, and there is no script, link, import or url()."""
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert len(reader.addresses) == 2
    kinds, held = zip(*(address.split(",") for address in reader.addresses), strict=True)
    assert set(kinds) == {"data:image/png;base64"}
    assert {base64.b64decode(image) for image in held} == set(IMAGES.values())
    assert not reader.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|@import|url\(", html)


def test_text_is_escaped(html):
    """Oracle: absence; the fixture's title and paper hold HTML's own characters."""
    assert "<made-up>" not in html
    assert "A &lt;made-up&gt; recipe" in html
    assert "Nobody &amp; Co." in html


def test_it_says_what_was_run(html, records):
    """Oracle: definition; command, commit, versions, seeds, and every run."""
    for expected in (
        "python scripts/reproduce.py made_up",
        "0123456789ab",
        "<dt>seeds</dt><dd>0, 1, 2</dd>",
        "18 runs, complete",
        "All 18 runs",
        "Expected: w more",
        "prefers-color-scheme: dark",
    ):
        assert expected in html
    for record in records:
        assert f"<td>{record.variant}</td><td>{record.seed}</td>" in html


def test_verdicts(html):
    """Oracle: by hand from the fixture; tanh/backprop has 2.07 against a published 2.0 +- 0.1."""
    assert (
        "1 of 1 published numbers reproduced (provenance of the numbers: memory, unverified)."
        in html
    )
    assert "<b>shallow</b>: +6.34 to +6.34 points of test error against backprop" in html


def test_partial_results_say_so(recipe, records):
    """Oracle: definition."""
    assert "7 of 18 runs" in page.html(recipe, records[:7], IMAGES)
