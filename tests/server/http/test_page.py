"""The page for people: what it may load, and what it shows in a real browser."""

import base64
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from browser import find_browser, open_tab
from PIL import Image

from keylock.licensing import Quota
from keylock.licensing.pem import armour

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")


def policy_of(reply):
    return dict(
        part.strip().split(" ", 1) if " " in part.strip() else (part.strip(), "")
        for part in reply.headers["content-security-policy"].split(";")
    )


def test_the_policy_lets_in_what_the_page_has_and_nothing_else(web):
    reply = web.get("/")
    text = reply.body.decode()
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = policy_of(reply)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_keeps_nothing_and_writes_no_markup(web):
    text = web.get("/").body.decode()
    assert re.findall(r"""<[^>]*\s(?:src|href)\s*=\s*["']?(?!data:,)[^"'>\s]+""", text) == []
    for word in ("http://", "https://", "localStorage", "sessionStorage", "indexedDB", "cookie", "innerHTML", "eval("):
        assert word not in text
    # Handlers and styles in attributes would not be let in.
    assert re.findall(r"""<[^>]*\s(?:on\w+|style)\s*=""", text) == []


def test_answers_that_are_no_page_let_nothing_in(web):
    assert policy_of(web.get("/v2")) == {"default-src": "'none'", "frame-ancestors": "'none'"}


def test_there_is_no_page_where_it_is_switched_off(serve_web):
    assert serve_web(http_page=False).get("/").status == 404


@pytest.fixture(scope="module")
def picture(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    # Bright in one corner, so that maps look like something.
    pixels = np.asarray(Image.fromarray(tiny.pixels(4, 4)).resize((64, 64), Image.Resampling.BILINEAR)).copy()
    pixels[:24, :24] = 250
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with open_tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def keep(tab, name):
    """Keeps a picture of the page where KEYLOCK_TEST_PICTURES names a folder for it."""
    if folder := os.environ.get("KEYLOCK_TEST_PICTURES"):
        (Path(folder) / f"{name}.png").write_bytes(tab.picture())


def pixels_of(tab, canvas):
    return tab.run(
        f"Array.from(at('{canvas}').getContext('2d').getImageData(0, 0, 256, 256).data.slice(0, 40000)).join()"
    )


@needs_browser
def test_a_person_sees_prediction_decoy_and_with_a_license_the_true_map(web, vendor, tab, picture):
    tab.events.clear()
    tab.look()
    tab.go(f"http://127.0.0.1:{web.port}/")
    tab.until("at('explainer').options.length === 2")
    assert "Model tiny" in tab.run("at('model').textContent")
    assert tab.run("at('go').disabled")
    tab.choose("#file", picture)
    tab.until("!at('go').disabled")
    tab.run("at('go').click()")
    tab.until("!at('answer').hidden")
    assert tab.run("at('true-figure').hidden")
    assert "needs a license" in tab.run("at('status').textContent")
    assert tab.run("at('prediction').children.length") == 4
    keep(tab, "decoy")

    granted = vendor.grant(quota=Quota(total=7))
    tab.run(f"at('license').value = '{granted.token}'; at('go').click()")
    tab.until("!at('true-figure').hidden && !at('quotas-part').hidden")
    assert pixels_of(tab, "true") != pixels_of(tab, "decoy")
    assert granted.id in tab.run("at('cost').textContent")
    assert "6 of 7 units left" in tab.run("at('quotas').textContent")
    assert "with the key" in tab.run("at('true-note').textContent")

    # All of it, on phones and desks, light and dark, fits its window.
    for width in (360, 1100):
        for dark in (False, True):
            tab.look(width=width, dark=dark)
            assert tab.run("document.documentElement.scrollWidth") <= width
            keep(tab, f"{width}-{'dark' if dark else 'light'}")
    assert all(url.startswith((f"http://127.0.0.1:{web.port}/", "data:", "blob:")) for url in tab.requested())
    assert not any(granted.token in url for url in tab.requested())
    kept = "JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, location.href])"
    assert tab.run(kept) == f'[0,0,"","http://127.0.0.1:{web.port}/"]'
    assert tab.complaints() == []


@needs_browser
def test_what_goes_wrong_is_said(web, tab, picture, vendor, tmp_path):
    tab.look()
    tab.go(f"http://127.0.0.1:{web.port}/")
    tab.until("at('explainer').options.length === 2")
    tab.run("at('left').click()")
    tab.until("at('problem').textContent.includes('Paste a license first')")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    tab.choose("#file", broken)
    tab.until("!at('go').disabled")
    tab.run("at('go').click()")
    tab.until("at('problem').textContent.includes('INVALID_IMAGE')")
    tab.choose("#file", picture)
    for license, words in (("two words", "no license"), ("not.a.license", "LICENSE_")):
        tab.run(f"at('license').value = '{license}'; at('go').click()")
        tab.until(f"at('problem').textContent.includes('{words}')")
    assert tab.run("at('answer').hidden")


@needs_browser
def test_the_keyboard_is_enough(web, vendor, tab, picture):
    tab.look()
    tab.go(f"http://127.0.0.1:{web.port}/")
    tab.until("at('explainer').options.length === 2")
    tab.choose("#file", picture)
    tab.until("!at('go').disabled")
    reached = []
    for _ in range(5):
        tab.press("Tab")
        reached.append(tab.run("document.activeElement.id"))
        if reached[-1] == "license":
            tab.type(vendor.grant().token)
    assert reached == ["file", "explainer", "license", "go", "left"]
    tab.run("at('license').focus()")
    tab.press("Enter")
    tab.until("!at('answer').hidden && !at('true-figure').hidden")
    tab.until("document.activeElement.id === 'answer'")


@needs_browser
def test_a_license_file_can_be_pasted_whole(web, vendor, tab, picture):
    tab.look()
    tab.go(f"http://127.0.0.1:{web.port}/")
    tab.until("at('explainer').options.length === 2")
    tab.choose("#file", picture)
    tab.until("!at('go').disabled")
    tab.run("at('license').focus()")
    # As it comes out of a mail: with the lines of the file, which the field puts together.
    tab.type(armour(vendor.grant().token))
    tab.run("at('go').click()")
    tab.until("!at('answer').hidden && !at('true-figure').hidden")
    assert tab.run("at('problem').textContent") == ""


@needs_browser
def test_script_from_elsewhere_does_not_run(web, tab):
    tab.events.clear()
    tab.go(f"http://127.0.0.1:{web.port}/")
    tab.run(
        "(() => { const one = document.createElement('script'); one.setAttribute('nonce', 'x');"
        " try { one.textContent = 'window.ran = 1'; document.body.append(one); } catch (error) {} })()"
    )
    assert tab.run("window.ran === undefined")
    refused = "fetch('http://127.0.0.1:9/').then(() => 'sent', error => 'refused')"
    assert tab.run(refused) == "refused"
    assert any("Content Security Policy" in one for one in tab.complaints())
