"""Reads a page as a browser would, for tests of its structure."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """What a page shows and refers to; a page whose elements are not closed in order is refused.

    Attributes:
        elements: Tag and attributes of every element, in order.
        words: All text that is shown, in order.
        style: All CSS.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.style, self._open = [], [], "", []
        self.text = text
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        # Elements of an SVG close themselves.
        if tag not in _VOID and not self.get_starttag_text().endswith("/>"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in _VOID or (self._open and self._open[-1] != tag):
            raise AssertionError(f"</{tag}> closes {self._open[-1:]}")
        self._open.pop()

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if "style" in self._open:
            self.style += data
        else:
            self.words.append(data)

    @property
    def shown(self):
        """All text that is shown, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def check(self):
        """Check what every page keeps to: nothing from outside, words for pictures, one title, both schemes, print."""
        addresses = [
            value
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
        ]
        assert all(address.startswith("data:image/png;base64,") for address in addresses)
        assert not re.search(r"https?:|url\(|@import", re.sub(r'data:[^"]*', "", self.text))
        assert not self.all("script")
        assert all(image["alt"].strip() for image in self.all("img"))
        assert all(image.get("aria-label") or image.get("aria-hidden") == "true" for image in self.all("svg"))
        assert self.all("html") == [{"lang": "en"}]
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in self.all("meta")
        assert len(self.all("h1")) == 1
        assert next(tag for tag, _ in self.elements if tag in {"h1", "h2", "h3"}) == "h1"
        assert "prefers-color-scheme: dark" in self.style
        assert "@media print" in self.style
        # Whatever is wider than a phone scrolls inside itself, and can be scrolled by keys.
        tables = [place for place, (tag, _) in enumerate(self.elements) if tag == "table"]
        for place in tables:
            tag, frame = self.elements[place - 1]
            assert (tag, frame["class"], frame["role"], frame["tabindex"]) == ("div", "scroll", "region", "0")
            assert frame["aria-label"]
        assert all(frame["tabindex"] == "0" for frame in self.all("pre"))
