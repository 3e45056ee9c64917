"""offline.py: what is read of an offline license before anything in it is verified."""

import pytest

from keylock.errors import LicenseError
from keylock.licensing.offline import OfflineLicense


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_no_json_has_is_refused(number, tmp_path):
    path = tmp_path / "acme.offline"
    text = '{"format":"keylock-offline-license/v1","license":"a.b.c","sealed_key":{"a":[%s]}}'
    path.write_text(text % "1.5", "ascii")
    assert OfflineLicense.read(path).sealed_key == b'{"a":[1.5]}'
    path.write_text(text % number, "ascii")
    with pytest.raises(LicenseError, match="not an offline license"):
        OfflineLicense.read(path)
