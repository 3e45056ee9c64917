"""What others wrote is shown without doing anything to a terminal."""

import pytest

from keylock.text.printable import printable

FLAG = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize("text", ["", "star", "café", "猫", "نمی‌خواهم", "👩‍🔬", FLAG, "Ω ≈ 3 µm", "a\\x1b"])
def test_what_is_printable_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jheart", r"\x1b[2Jheart"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("exe.\u202egpj", r"exe.\u202egpj"),
        (FLAG[:-1], FLAG[0] + r"\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067"),
        ("x" + FLAG[1:3], r"x\U000e0067\U000e0062"),
        ("\u2028\ufeff\ud800\U000e0001", r"\u2028\ufeff\ud800\U000e0001"),
    ],
)
def test_what_is_not_printable_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()
