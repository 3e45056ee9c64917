"""What counts as data, and how it is divided into blocks."""

import pytest

pytest.importorskip("pyarrow", reason="needs the extra ray")

import pyarrow as pa
from bulk_jobs import draw
from object_store import object_store
from pyarrow import parquet

from keylock.bulk.plan import make_blocks, read_block, read_plan
from keylock.bulk.sources import Place, list_data
from keylock.errors import DataError, InputError

PNG = b"\x89PNG"


def blocks_of(path, *, size, limit=None, column=None):
    place = Place.of(str(path))
    return list(make_blocks(place, list_data(place, column=column), size=size, limit=limit))


def test_folder_is_listed_at_any_depth_and_in_order(tmp_path):
    data = draw(tmp_path / "data", 5)
    (data / "notes.txt").write_text("none")
    (data / ".hidden.png").write_bytes(PNG)
    listing = list_data(Place.of(str(data)), column=None)
    assert listing.names == ("000.png", "002.png", "004.png", "below/001.png", "below/003.png")
    assert (listing.kind, listing.passed_over) == ("files", 1)


def test_blocks_have_every_image_once(tmp_path):
    blocks = blocks_of(draw(tmp_path / "data", 11), size=4)
    assert [(one.number, one.first, one.count) for one in blocks] == [(0, 0, 4), (1, 4, 4), (2, 8, 3)]
    assert len({name for one in blocks for name in one.names}) == 11


@pytest.mark.parametrize(("limit", "counts"), [(1, [1]), (4, [4]), (9, [4, 4, 1]), (99, [4, 4, 3])])
def test_limit_cuts_the_last_block(tmp_path, limit, counts):
    assert [one.count for one in blocks_of(draw(tmp_path / "data", 11), size=4, limit=limit)] == counts


def test_blocks_of_parquet_end_with_its_row_groups(tmp_path):
    for name, rows in (("a", 10), ("b", 3)):
        parquet.write_table(pa.table({"image": [PNG] * rows}), tmp_path / f"{name}.parquet", row_group_size=6)
    blocks = blocks_of(tmp_path, size=4, limit=12)
    found = [(one.names[0], one.group, one.start, one.first, one.count) for one in blocks]
    assert found == [
        ("a.parquet", 0, 0, 0, 4),
        ("a.parquet", 0, 4, 4, 2),
        ("a.parquet", 1, 0, 6, 4),
        ("b.parquet", 0, 0, 10, 2),
    ]


def test_plan_is_read_line_by_line(tmp_path):
    blocks = blocks_of(draw(tmp_path / "data", 11), size=4)
    (tmp_path / "plan").write_text("".join(block.to_line() for block in blocks))
    placed = read_plan(tmp_path / "plan")
    assert [(one.number, one.count) for one in placed] == [(0, 4), (1, 4), (2, 3)]
    assert [read_block(tmp_path / "plan", one.offset) for one in placed] == blocks
    (tmp_path / "plan").write_text("{nothing")
    with pytest.raises(DataError, match="damaged"):
        read_plan(tmp_path / "plan")


def test_column_is_found_where_one_can_be_meant(tmp_path):
    path = tmp_path / "data.parquet"
    columns = {"id": [1], "photo": [PNG], "thumb": [{"bytes": PNG, "path": "x.png"}]}
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=r"several columns of bytes \(photo, thumb\)"):
        blocks_of(path, size=4)
    with pytest.raises(DataError, match=r"'id'.*photo, thumb"):
        blocks_of(path, size=4, column="id")
    place = Place.of(str(path))
    assert list_data(place, column="thumb").column == "thumb"
    parquet.write_table(pa.table({**columns, "image": [PNG]}), path)
    assert list_data(place, column=None).column == "image"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda data: None, "there is no"),
        (lambda data: data.mkdir(), "has no images: expected"),
        (lambda data: data.write_bytes(PNG), "is one file"),
        (lambda data: [data.mkdir(), (data / "a.txt").write_text("x")], "no images among its 1 files"),
        (lambda data: [data.mkdir(), (data / "a.parquet").write_text("x")], "cannot read a.parquet"),
        (
            lambda data: [data.mkdir(), (data / "a.png").write_bytes(PNG), (data / "a.parquet").write_bytes(PNG)],
            "1 image files and 1 Parquet files",
        ),
    ],
)
def test_what_is_no_data_is_named(tmp_path, make, told):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=told):
        blocks_of(tmp_path / "data", size=4)


def test_column_is_for_parquet_alone(tmp_path):
    with pytest.raises(InputError, match="column="):
        blocks_of(draw(tmp_path / "data", 1), size=4, column="image")


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/images", "s3://key@bucket/images"])
def test_passwords_in_the_url_are_refused(url):
    with pytest.raises(InputError, match="password") as caught:
        Place.of(url)
    assert "secret" not in str(caught.value)


def test_unknown_url_is_refused():
    with pytest.raises(InputError, match="nowhere://images cannot be used"):
        Place.of("nowhere://images")


def test_file_that_is_gone_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"cannot read gone.png: No such file"):
        Place.of(str(tmp_path)).read("gone.png", most=10)


def test_images_in_an_object_store_are_listed_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    data = draw(tmp_path / "data", 5)
    objects = {f"photos/{path.relative_to(data)}": path.read_bytes() for path in data.rglob("*.png")}
    table = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"image": list(objects.values())}), table)
    objects["table.parquet"] = table.read_bytes()
    with object_store(objects) as where:
        how = f"?endpoint_override={where}&scheme=http&region=nowhere"
        place = Place.of(f"s3://bucket/photos{how}")
        listing = list_data(place, column=None)
        assert listing.names == ("000.png", "002.png", "004.png", "below/001.png", "below/003.png")
        assert place.read("below/001.png", most=10**6) == objects["photos/below/001.png"]
        with pytest.raises(DataError, match=r"cannot read gone.png"):
            place.read("gone.png", most=10)
        assert [one.count for one in blocks_of(f"s3://bucket/table.parquet{how}", size=2)] == [2, 2, 1]
        with pytest.raises(DataError, match="there is no s3://bucket/nothing"):
            blocks_of(f"s3://bucket/nothing{how}", size=2)
