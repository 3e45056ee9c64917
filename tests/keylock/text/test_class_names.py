"""Class names: one spelling, and a clear refusal of what nobody could read or tell apart."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylock.data import open_data
from keylock.errors import DataError, KeylockError
from keylock.imaging.preprocessing import Preprocessing
from keylock.pipeline.publish import Publication
from keylock.text.class_names import MAX_CLASS_NAME, normalise_class_name, normalise_class_names

SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
# Whatever the tables of this Python are, they leave out something between two blocks of emoji.
UNKNOWN = next(chr(code) for code in range(0x1FAFF, 0x1FA6F, -1) if unicodedata.category(chr(code)) == "Cn")
DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"


@pytest.mark.parametrize(
    ("given_name", "spelt"),
    [
        ("cat", "cat"),
        (DECOMPOSED, COMPOSED),
        ("  hot dog ", "hot dog"),
        ("hot\u00a0dog", "hot dog"),
        ("\u3000猫", "猫"),
        ("\U0001f431", "\U0001f431"),
        ("\U0001f1e9\U0001f1ea", "\U0001f1e9\U0001f1ea"),
        (f"kilt {SCOTLAND}", f"kilt {SCOTLAND}"),
        ("\U0001f469\u200d\U0001f692", "\U0001f469\u200d\U0001f692"),
        ("می\u200cروم", "می\u200cروم"),
        # Malayalam, Bengali and Devanagari write a letter without its vowel at the end of a word by a joiner.
        ("അവന്\u200d", "അവന്\u200d"),
        ("ক্\u200d", "ক্\u200d"),
        ("क्\u200c", "क्\u200c"),
        ("한국", "한국"),
        ("a/b", "a/b"),
        ("x" * MAX_CLASS_NAME, "x" * MAX_CLASS_NAME),
    ],
)
def test_names_get_one_spelling(given_name, spelt):
    assert normalise_class_names([given_name, "another"], source="pets") == (spelt, "another")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "class 1 has an empty name"),
        (" \u00a0", "class 1 has an empty name"),
        ("c\r", "a control character (U+000D)"),
        ("b\nc", "a control character (U+000A)"),
        ("a\tb", "a control character (U+0009)"),
        ("nul\x00", "a control character (U+0000)"),
        ("\x1b[31mred", "a control character (U+001B)"),
        ("\u202eabc", "an invisible character (U+202E)"),
        ("ab\u2066c", "an invisible character (U+2066)"),
        ("\ufeffcat", "an invisible character (U+FEFF)"),
        ("zero\u200bwidth", "an invisible character (U+200B)"),
        ("soft\u00adhyphen", "an invisible character (U+00AD)"),
        ("cat\u200d", "an invisible character (U+200D)"),
        ("क्\u200d\u200d", "an invisible character (U+200D)"),
        ("\u200dക", "an invisible character (U+200D)"),
        ("c\u200d\u200cat", "an invisible character (U+200D)"),
        ("\u3164", "an invisible character (U+3164)"),
        ("line\u2028break", "an invisible character (U+2028)"),
        ("\ud800", "half of a character (U+D800)"),
        ("\ue000", "a character for private use (U+E000)"),
        ("\U000f1234", "a character for private use (U+F1234)"),
        (f"new {UNKNOWN}", f"does not know (U+{ord(UNKNOWN):04X})"),
        (f"{SCOTLAND[:-1]}", "an invisible character (U+E0067)"),
        (f"flag {SCOTLAND[1:]}", "an invisible character (U+E0067)"),
        ("\u0301\u0302", "a name of accents alone"),
        ("x" * (MAX_CLASS_NAME + 1), f"a name of {MAX_CLASS_NAME + 1} characters"),
        (3, "is named by a int"),
        (None, "is named by a NoneType"),
    ],
)
def test_a_name_nobody_can_read_is_refused(name, says):
    with pytest.raises(DataError) as error:
        normalise_class_names(["a", name], source="pets")

    assert error.value.message.startswith("pets: class 1")
    assert says in error.value.message
    assert error.value.message.isprintable()


@pytest.mark.parametrize(
    "other",
    [COMPOSED, DECOMPOSED, f" {COMPOSED}", "ca\u200dfé", f"{COMPOSED}\ufe0e"],
)
def test_names_that_look_the_same_are_refused(other):
    with pytest.raises(DataError, match="classes 0 and 2 have the same name"):
        normalise_class_names([COMPOSED, "tea", other], source="drinks")


def test_case_tells_names_apart():
    assert normalise_class_names(["Cat", "cat"], source="pets") == ("Cat", "cat")


@given(st.text())
def test_the_spelling_of_a_spelling_is_itself(name):
    once = normalise_class_name(name)

    assert normalise_class_name(once) == once


def test_a_data_set_is_refused_when_it_is_opened(tmp_path):
    images, labels = np.zeros((40, 16, 16, 3), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "nfd.npz", images=images, labels=labels, class_names=np.array([DECOMPOSED, "tea"]))
    np.savez(tmp_path / "crlf.npz", images=images, labels=labels, class_names=np.array(["a", "c\r"]))
    np.savez(tmp_path / "latin.npz", images=images, labels=labels, class_names=np.array([b"a", b"caf\xe9"]))

    assert open_data(tmp_path / "nfd.npz", test_share=0.5).classes == (COMPOSED, "tea")
    with pytest.raises(DataError, match=r"crlf: class 1 .* control character"):
        open_data(tmp_path / "crlf.npz")
    with pytest.raises(DataError, match="another encoding than UTF-8"):
        open_data(tmp_path / "latin.npz")


def test_a_publication_is_refused_before_it_is_published():
    preprocessing = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)

    assert Publication(name="pets", classes=(DECOMPOSED, "b"), preprocessing=preprocessing).classes == (COMPOSED, "b")
    with pytest.raises(KeylockError, match="empty name"):
        Publication(name="pets", classes=("a", ""), preprocessing=preprocessing)
