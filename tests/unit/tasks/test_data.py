"""Datasets: every form of data, every way it can be wrong, splitting, batches, bounded memory."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelmill.tasks import DataError, batches, load_card, objects, open_data, prepare, split


def _zip(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def _summary(dataset) -> list[tuple[str, int | None, int]]:
    samples = [dataset.sample(i) for i in range(len(dataset))]
    return [(s.id, s.truth, int(s.image.sum())) for s in samples]


# ---------------------------------------------------------------------------- one folder per class


def test_folder_of_class_folders(class_folder, card, picture):
    dataset = open_data(class_folder, card())
    assert dataset.ids == (
        "ant/0.png",
        "ant/1.png",
        "bee/0.png",
        "bee/1.png",
        "cat/0.png",
        "cat/1.png",
    )
    assert dataset.labelled and [dataset.sample(i).truth for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(dataset.sample(3).image, picture(11))
    assert dataset.sample(3).size == (6, 8)


@pytest.mark.parametrize("prefix", ["", "test/"])
def test_zip_of_class_folders_plain_or_nested(class_folder, card, tmp_path, prefix):
    archive = _zip(class_folder, tmp_path / "data.zip", prefix)
    assert _summary(open_data(archive, card())) == _summary(open_data(class_folder, card()))


def test_what_operating_systems_leave_behind_is_not_seen(class_folder, card, tmp_path):
    (class_folder / ".DS_Store").write_bytes(b"x")
    (class_folder / "ant" / "._0.png").write_bytes(b"x")
    (class_folder / "__MACOSX" / "ant").mkdir(parents=True)
    (class_folder / "__MACOSX" / "ant" / "0.png").write_bytes(b"x")
    (class_folder / "bee" / "notes.txt").write_bytes(b"x")
    assert len(open_data(class_folder, card())) == 6
    assert len(open_data(_zip(class_folder, tmp_path / "a.zip"), card())) == 6


def test_links_are_followed_once(class_folder, card, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("ant", "bee", "cat"):
        (tmp_path / "linked" / name).symlink_to(class_folder / name)
    (class_folder / "cat" / "loop").symlink_to(class_folder / "cat")
    assert len(open_data(tmp_path / "linked", card())) == 6


def test_folders_are_matched_by_the_cards_names(class_folder, card):
    dataset = open_data(class_folder, card(classes=["cat", "dog", "bee", "ant"]))
    assert [dataset.sample(i).truth for i in range(6)] == [3, 3, 2, 2, 0, 0]
    dataset = open_data(class_folder, card(classes=["x", "y", "z"]))
    assert [dataset.sample(i).truth for i in range(6)] == [0, 0, 1, 1, 2, 2]


def test_half_known_folder_names_are_a_mistake(class_folder, card):
    with pytest.raises(DataError, match="folder 'ant' is not one of the card's classes"):
        open_data(class_folder, card(classes=["Ant", "bee", "cat"]))


def test_other_number_of_classes(class_folder, card):
    with pytest.raises(DataError, match=r"folder has 3 class folders \(ant, bee, cat\).*10"):
        open_data(class_folder, card(classes=10))


def test_picture_beside_the_class_folders(class_folder, card):
    shutil.copy(class_folder / "ant" / "0.png", class_folder / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside"):
        open_data(class_folder, card())


def test_class_folders_do_not_feed_a_detector(class_folder, detector):
    with pytest.raises(DataError, match=r"one folder per class.*detection.*instances\.json"):
        open_data(class_folder, detector())


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n"])
def test_broken_picture_is_named(class_folder, card, content):
    (class_folder / "bee" / "1.png").write_bytes(content)
    dataset = open_data(class_folder, card())
    assert dataset.sample(2).truth == 1
    with pytest.raises(DataError, match=r"folder/bee/1\.png: "):
        dataset.sample(3)


def test_picture_removed_meanwhile(class_folder, card):
    dataset = open_data(class_folder, card())
    (class_folder / "bee" / "1.png").unlink()
    with pytest.raises(DataError, match=r"bee/1\.png: No such file"):
        dataset.sample(3)


def test_wrong_size_is_named_only_without_a_resize(class_folder, card, encoded, picture):
    (class_folder / "bee" / "0.png").write_bytes(encoded(picture(1, (6, 9))))
    with pytest.raises(DataError, match=r"bee/0\.png is 6x9.*takes 6x8.*input\.resize"):
        open_data(class_folder, card()).sample(2)
    how = {"method": "pillow-box", "mode": "stretch"}
    assert open_data(class_folder, card(resize=how)).sample(2).size == (6, 9)


def test_exif_as_the_card_says(card, picture, tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(picture(1)).save(tmp_path / "0.png", exif=exif)
    assert np.array_equal(open_data(tmp_path, card()).sample(0).image, picture(1))
    upright = open_data(tmp_path, card(exif=True)).sample(0).image
    assert np.array_equal(upright, picture(1)[::-1, ::-1])


# ---------------------------------------------------------------------------------- nothing usable


def test_path_that_does_not_exist(card, tmp_path):
    for name in ("nowhere", "nowhere.zip", "nowhere.npz"):
        with pytest.raises(DataError, match=f"{name} does not exist"):
            open_data(tmp_path / name, card())
        with pytest.raises(DataError, match=f"{name} does not exist"):
            open_data(str(tmp_path / name), card())


def test_empty_folder_and_zip(card, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"no pictures \(1 other files\).*\.jpg"):
        open_data(tmp_path, card())
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    with pytest.raises(DataError, match="no pictures"):
        open_data(tmp_path / "a.zip", card())


def test_file_of_another_kind(card, tmp_path):
    (tmp_path / "data.tar").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"neither a folder nor a zip.*labels\.csv"):
        open_data(tmp_path / "data.tar", card())


def test_truncated_zip(class_folder, card, tmp_path):
    archive = _zip(class_folder, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.zip"):
        open_data(archive, card())


def test_damage_inside_a_zip_is_named(class_folder, card, tmp_path):
    archive = _zip(class_folder, tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    start = data.index(b"IDAT")
    data[start + 20] ^= 255
    archive.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip/ant/0\.png: broken in the zip"):
        open_data(archive, card()).sample(0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(class_folder, card):
    (class_folder / "bee").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(class_folder, card())


def test_a_transform_does_not_go_with_files(class_folder, card):
    with pytest.raises(DataError, match="transform"):
        open_data(class_folder, card(), transform=lambda x: x)


# -------------------------------------------------------------------------------------- unlabelled


def test_pictures_alone_have_no_truth(card, detector, encoded, picture, tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(encoded(picture(n)))
    for model in (card(), detector()):
        dataset = open_data(tmp_path, model)
        assert not dataset.labelled and dataset.sample(2).truth is None
        assert np.array_equal(dataset.sample(2).image, picture(2))


def test_images_without_a_table_have_no_truth(csv_folder, card):
    (csv_folder / "labels.csv").unlink()
    dataset = open_data(csv_folder, card())
    assert len(dataset) == 4 and not dataset.labelled


# -------------------------------------------------------------------------------------- labels.csv


def test_csv_gives_order_and_classes(csv_folder, card, picture, tmp_path):
    for source in (csv_folder, _zip(csv_folder, tmp_path / "c.zip", "outer/")):
        dataset = open_data(source, card())
        assert dataset.ids == tuple(f"images/{n}.png" for n in (3, 0, 1, 2))
        assert [dataset.sample(i).truth for i in range(4)] == [2, 0, 1, 0]
        assert np.array_equal(dataset.sample(0).image, picture(3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "file,class_index\n0.png,3\n",
            r"line 2 \(0\.png\): class index 3 is out of range.*3 classes",
        ),
        ("file,class_index\n0.png,0\n1.png,-1\n", r"line 3 \(1\.png\): class index -1"),
        ("file,class_index\n0.png,cat\n", "line 2.*'cat' is not an integer"),
        ("file,class_index\n0.png\n", "line 2.*None is not an integer"),
        ("file,class_index\n9.png,0\n", r"line 2: images/9\.png does not exist"),
        ("file,class_index\n../labels.csv,0\n", "line 2: .* does not exist"),
        ("file,class_index\n0.png,0\n0.png,1\n", r"line 3: images/0\.png is listed twice"),
        ("file,label\n0.png,0\n", "no column 'class_index'.*file,label"),
        ("", "no column 'file'"),
        ("file,class_index\n", "lists no pictures"),
        ('file,class_index\n"0.png,0\n', "not a CSV"),
    ],
)
def test_csv_mistakes_are_named(csv_folder, card, text, words):
    (csv_folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        open_data(csv_folder, card())


def test_csv_of_a_spreadsheet_and_of_another_encoding(csv_folder, card):
    path = csv_folder / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbffile,class_index\r\n0.png,1\r\n")
    assert open_data(csv_folder, card()).sample(0).truth == 1
    path.write_bytes(b"file,class_index\n\xff\xfe.png,1\n")
    with pytest.raises(DataError, match="not a CSV text file"):
        open_data(csv_folder, card())


def test_csv_does_not_feed_a_detector(csv_folder, detector):
    with pytest.raises(DataError, match=r"class per picture.*detection"):
        open_data(csv_folder, detector())


# ---------------------------------------------------------------------------------- instances.json


HOW = {"method": "opencv-area", "mode": "stretch"}


def test_coco_gives_boxes_in_pixels(coco_folder, detector, tmp_path):
    for source in (coco_folder, _zip(coco_folder, tmp_path / "c.zip")):
        dataset = open_data(source, detector(classes=2, resize=HOW))
        assert dataset.ids == ("images/b.png", "images/a.png")
        truth = dataset.sample(0).truth
        assert truth.boxes_xyxy.tolist() == [[1, 2, 11, 10], [0, 0, 30, 20]]
        # category ids 5 and 90: by number of classes their rank counts
        assert truth.classes.tolist() == [1, 0]
        assert truth.area.tolist() == [60.5, 9] and truth.crowd.tolist() == [False, True]
        other = dataset.sample(1).truth
        assert other.area.tolist() == [20] and other.crowd.tolist() == [False]


def test_coco_classes_by_name(coco_folder, detector):
    dataset = open_data(coco_folder, detector(classes="coco80", resize=HOW))
    assert dataset.sample(0).truth.classes.tolist() == [15, 16]  # cat, dog of the 80


@pytest.mark.parametrize(
    ("classes", "words"),
    [(3, "2 categories.*classes = 3"), (["dog", "cow"], "do not include cat")],
)
def test_coco_of_other_classes(coco_folder, detector, classes, words):
    with pytest.raises(DataError, match=words):
        open_data(coco_folder, detector(classes=classes, resize=HOW))


def _without(*keys):
    def change(data):
        holder = data
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]

    return change


def _with(value, *keys):
    def change(data):
        holder = data
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("images"), "no list 'images'.*found: categories, annotations"),
        (_without("annotations"), "no list 'annotations'"),
        (_with({}, "categories"), "no list 'categories'"),
        (_without("images", 1, "file_name"), r"images\[1\] has no 'file_name'"),
        (_without("annotations", 0, "bbox"), r"annotations\[0\] has no 'bbox'"),
        (_without("categories", 0, "name"), r"categories\[0\] has no 'name'"),
        (_with([1], "annotations", 0, "image_id"), r"annotations\[0\]\.image_id = \[1\]"),
        (_with(99, "annotations", 2, "image_id"), r"annotations\[2\]\.image_id = 99"),
        (_with(99, "annotations", 1, "category_id"), r"annotations\[1\]\.category_id = 99"),
        (_with(3, "images", 0, "id"), "same id"),
        (_with("c.png", "images", 0, "file_name"), r"images/c\.png does not exist \(1 of 2"),
        (_with([1, 2, 3], "annotations", 0, "bbox"), r"b\.png: .*\[x, y, width, height\]"),
        (_with([1, 2, -3, 4], "annotations", 0, "bbox"), r"b\.png: boxes must be finite"),
        (_with([1, 2, None, 4], "annotations", 0, "bbox"), r"b\.png: "),
        (_with([], "images"), "annotations|lists no pictures"),
    ],
)
def test_coco_mistakes_are_named(coco_folder, detector, instances, change, words):
    change(instances)
    (coco_folder / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(DataError, match=f"instances.json.*(?:{words})"):
        open_data(coco_folder, detector(classes=2, resize=HOW))


def test_coco_that_is_not_json(coco_folder, detector):
    for content in (b"[1, 2", b"\xff\xfe\x00"):
        (coco_folder / "instances.json").write_bytes(content)
        with pytest.raises(DataError, match=r"instances\.json is not JSON"):
            open_data(coco_folder, detector(classes=2, resize=HOW))
    (coco_folder / "instances.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="found: list"):
        open_data(coco_folder, detector(classes=2, resize=HOW))


def test_coco_picture_of_another_size(coco_folder, detector, encoded, picture):
    (coco_folder / "images" / "a.png").write_bytes(encoded(picture(1, (12, 10))))
    with pytest.raises(DataError, match=r"a\.png is 12x10.*instances\.json says 10x12"):
        open_data(coco_folder, detector(classes=2, resize=HOW)).sample(1)


def test_coco_does_not_feed_a_classifier(coco_folder, card):
    with pytest.raises(DataError, match=r"instances\.json.*classification.*labels\.csv"):
        open_data(coco_folder, card())


# -------------------------------------------------------------------------------------------- .npz


def test_npz_colour_and_grey(card, picture, tmp_path):
    x = np.stack([picture(n) for n in range(3)])
    np.savez(tmp_path / "a.npz", x=x, y=np.array([2, 0, 1]))
    dataset = open_data(tmp_path / "a.npz", card())
    assert dataset.ids == ("x[0]", "x[1]", "x[2]") and dataset.labelled
    assert [dataset.sample(i).truth for i in range(3)] == [2, 0, 1]
    assert np.array_equal(dataset.sample(1).image, x[1])
    for grey in (x[..., 0], x[..., :1]):
        np.savez_compressed(tmp_path / "b.npz", x=grey)
        dataset = open_data(tmp_path / "b.npz", card())
        assert not dataset.labelled
        assert np.array_equal(dataset.sample(1).image, np.repeat(x[1, :, :, :1], 3, axis=2))


X = np.zeros((4, 6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": X, "y": np.zeros(4, int)}, "no array 'x'.*images, y"),
        ({"x": X.astype(np.float32)}, "x is float32.*uint8"),
        ({"x": X[0, 0]}, r"x is uint8 \(8, 3\)"),
        ({"x": X.transpose(0, 3, 1, 2)}, r"x is uint8 \(4, 3, 6, 8\)"),
        ({"x": X[:0]}, "x is empty"),
        ({"x": X, "y": np.zeros(3, int)}, r"y is int64 \(3,\).*\(4,\)"),
        ({"x": X, "y": np.zeros(4)}, "y is float64"),
        ({"x": X, "y": np.array([0, 1, 3, 9])}, r"a\.npz, y\[2\]: class index 3.*3 classes"),
        ({"x": X, "y": np.array([0, -1, 3, 9])}, r"y\[1\]: class index -1"),
        ({"x": X, "y": np.array([None] * 4)}, "not a readable .npz"),
    ],
)
def test_npz_mistakes_are_named(card, tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path / "a.npz", card())


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_npz_that_is_none(card, tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz is not a readable \.npz"):
        open_data(tmp_path / "a.npz", card())


def test_npy_in_disguise(card, tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"a\.npz is not a readable \.npz"):
        open_data(tmp_path / "a.npz", card())


def test_npz_labels_do_not_feed_a_detector(detector, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.zeros(4, int))
    with pytest.raises(DataError, match=r"class per picture.*detection"):
        open_data(tmp_path / "a.npz", detector())


def test_npz_of_another_size(card, tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:, :5])
    with pytest.raises(DataError, match=r"x\[0\] is 5x8"):
        open_data(tmp_path / "a.npz", card()).sample(0)


# ------------------------------------------------------------------------------------- from Python


def test_pairs_from_a_list_and_from_a_generator(card, picture):
    pairs = [(picture(n), n) for n in range(3)]
    for source in (pairs, iter(pairs), ((image, truth) for image, truth in pairs)):
        dataset = open_data(source, card())
        assert dataset.ids == ("item 0", "item 1", "item 2") and dataset.labelled
        assert [dataset.sample(i).truth for i in range(3)] == [0, 1, 2]
        assert np.array_equal(dataset.sample(2).image, picture(2))


def test_a_sequence_is_read_lazily(card, picture):
    class Many:
        def __len__(self) -> int:
            return 10**5

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return picture(i), i % 3

    dataset = open_data(Many(), card())
    assert len(dataset) == 10**5 and dataset.sample(5).truth == 2


def test_pillow_images_grey_arrays_and_no_truth(card, picture):
    grey = picture(1)[..., 0]
    dataset = open_data([Image.fromarray(picture(1)), grey, grey[..., None]], card())
    assert not dataset.labelled
    assert np.array_equal(dataset.sample(0).image, picture(1))
    for i in (1, 2):
        assert np.array_equal(dataset.sample(i).image, np.repeat(grey[..., None], 3, 2))


def test_an_array_is_pictures_without_truth(card, picture):
    dataset = open_data(np.stack([picture(n) for n in range(2)]), card())
    assert len(dataset) == 2 and not dataset.labelled


def test_transform_makes_the_picture(card, picture):
    floats = [(picture(n) / 255, n) for n in range(2)]
    dataset = open_data(floats, card(), lambda x: np.round(x * 255).astype(np.uint8))
    assert np.array_equal(dataset.sample(1).image, picture(1))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "the iterable is empty"),
        ([(np.zeros((6, 8, 3)), 0)], "item 0: .*uint8.*float64.*transform"),
        ([(np.zeros((3, 6, 8), np.uint8), 0)], r"item 0: .*\(3, 6, 8\)"),
        ([(X[0], 0), (X[0], 3)], "item 1: class index 3 is out of range"),
        ([(X[0], 0), (X[0], "cat")], "item 1: class index 'cat'"),
        ([(Image.new("F", (8, 6)), 0)], "item 0: .*no fixed range"),
        ([(X[0, :5], 0)], "item 0 is 5x8"),
    ],
)
def test_python_mistakes_are_named(card, items, words):
    with pytest.raises(DataError, match=words):
        dataset = open_data(items, card())
        [dataset.sample(i) for i in range(len(dataset))]


@pytest.mark.parametrize("source", [3, None, {"x": X}, b"bytes"])
def test_not_data_at_all(card, source):
    with pytest.raises(DataError, match=f"data of type {type(source).__name__}"):
        open_data(source, card())


def test_boxes_from_python(detector):
    card = detector(classes=3)
    given_as = {"boxes": [[1, 2, 3, 5]], "labels": [2]}
    dataset = open_data([(X[0], given_as), (X[0], objects([[1, 2, 3, 5]], [2]))], card)
    for i in range(2):
        truth = dataset.sample(i).truth
        assert truth.boxes_xyxy.tolist() == [[1, 2, 3, 5]] and truth.classes.tolist() == [2]
        assert truth.area.tolist() == [6] and not truth.crowd.any()


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({"boxes": [[1, 2, 3, 5]]}, "needs 'boxes' and 'labels'"),
        ({"boxes": [[1, 2, 3]], "labels": [1]}, "item 0: "),
        ({"boxes": [[3, 2, 1, 5]], "labels": [1]}, "item 0: boxes must be"),
        ({"boxes": [[1, 2, 3, 5]], "labels": [1, 2]}, "1 boxes with 2 classes"),
        ({"boxes": [[1, 2, 3, 5]], "labels": [3]}, "item 0: class index 3"),
        (2, "item 0: the truth of a detector"),
    ],
)
def test_boxes_from_python_that_are_wrong(detector, truth, words):
    with pytest.raises(DataError, match=words):
        open_data([(X[0], truth)], detector(classes=3)).sample(0)


# ---------------------------------------------------------------------- fingerprint, subset, split


def test_fingerprint_knows_content_not_place_or_time(
    class_folder, card, tmp_path, encoded, picture
):
    first = open_data(class_folder, card()).fingerprint()
    copy = shutil.copytree(class_folder, tmp_path / "copy")
    os.utime(copy / "ant" / "0.png", (1, 1))
    assert len(first) == 64 and open_data(copy, card()).fingerprint() == first
    (copy / "ant" / "0.png").write_bytes(encoded(picture(99)))
    changed = open_data(copy, card()).fingerprint()
    (copy / "ant" / "0.png").rename(copy / "ant" / "9.png")
    assert len({first, changed, open_data(copy, card()).fingerprint()}) == 3


def test_fingerprint_of_a_zip(class_folder, card, tmp_path):
    first = open_data(_zip(class_folder, tmp_path / "a.zip"), card()).fingerprint()
    assert open_data(_zip(class_folder, tmp_path / "b.zip"), card()).fingerprint() == first
    shutil.copy(class_folder / "ant" / "0.png", class_folder / "cat" / "1.png")
    assert open_data(_zip(class_folder, tmp_path / "c.zip"), card()).fingerprint() != first


def test_fingerprint_knows_the_labels(csv_folder, coco_folder, card, detector, instances, tmp_path):
    first = open_data(csv_folder, card()).fingerprint()
    (csv_folder / "labels.csv").write_text("file,class_index\n3.png,1\n0.png,0\n1.png,1\n2.png,0\n")
    assert open_data(csv_folder, card()).fingerprint() != first
    boxes = detector(classes=2, resize=HOW)
    first = open_data(coco_folder, boxes).fingerprint()
    instances["annotations"][0]["bbox"][0] = 2
    (coco_folder / "instances.json").write_text(json.dumps(instances))
    assert open_data(coco_folder, boxes).fingerprint() != first
    prints = set()
    for y in ([0, 1, 2, 0], [0, 1, 2, 1]):
        np.savez(tmp_path / "a.npz", x=X, y=np.array(y))
        prints.add(open_data(tmp_path / "a.npz", card()).fingerprint())
        prints.add(open_data([(X[0], label) for label in y], card()).fingerprint())
    prints.add(open_data([(X[0], {"boxes": [[0, 0, 1, 1]], "labels": [0]})], boxes).fingerprint())
    assert len(prints) == 5


def test_subset_keeps_order_and_has_its_own_fingerprint(class_folder, card):
    whole = open_data(class_folder, card())
    part = whole.subset([4, 0])
    assert part.ids == ("cat/0.png", "ant/0.png") and len(part) == 2
    assert [part.sample(i).truth for i in range(2)] == [2, 0]
    prints = {whole.fingerprint(), part.fingerprint(), whole.subset([0, 4]).fingerprint()}
    assert len(prints) == 3 and whole.subset([4, 0]).fingerprint() == part.fingerprint()
    assert part.subset([1]).ids == ("ant/0.png",)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.integers(0, 5), st.data())
def test_split_parts_are_disjoint_complete_and_repeatable(n, seed, data):
    from modelmill.tasks import Card, Input, Output

    spec = Input("NCHW", (1, 1), "RGB", None, 1.0, (0.0,) * 3, (1.0,) * 3)
    small = Card("classification", spec, Output("argmax"), 2)
    dataset = open_data([(np.zeros((1, 1, 3), np.uint8), 0)] * n, small)
    count = data.draw(st.integers(1, n - 1))
    calib, rest = split(dataset, count, seed)
    assert len(calib) == count and sorted(calib.ids + rest.ids) == sorted(dataset.ids)
    order = [dataset.ids.index(i) for i in calib.ids]
    assert order == sorted(order)
    assert split(dataset, count, seed)[0].ids == calib.ids


def test_split_depends_on_the_seed_and_leaves_something(card):
    dataset = open_data([(X[0], 0)] * 50, card())
    assert split(dataset, 25, 0)[0].ids != split(dataset, 25, 1)[0].ids
    for count in (0, 50, 512):
        with pytest.raises(DataError, match=f"cannot take {count} .*out of 50.*--calibrate"):
            split(dataset, count, 0)


# ----------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("read_ahead", [False, True])
def test_batches_are_re_iterable(class_folder, card, read_ahead):
    dataset, function = open_data(class_folder, card()), prepare(card())
    feeds = batches(dataset, [5, 0, 1, 2, 3], function, 2, "image", read_ahead)
    assert len(feeds) == 3
    for _ in range(2):
        found = list(feeds)
        assert [list(feed) for feed in found] == [["image"]] * 3
        assert [feed["image"].shape for feed in found] == [(2, 3, 6, 8), (2, 3, 6, 8), (1, 3, 6, 8)]
        whole = np.concatenate([feed["image"] for feed in found])
        expected = [function(dataset.sample(i).image) for i in (5, 0, 1, 2, 3)]
        assert np.array_equal(whole, np.stack(expected))


@pytest.mark.parametrize(("read_ahead", "most"), [(False, 4), (True, 8)])
def test_batches_never_run_far_ahead(card, read_ahead, most):
    read = []

    class Watched:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> np.ndarray:
            read.append(i)
            return X[0]

    dataset = open_data(Watched(), card())
    read.clear()
    feeds = batches(dataset, range(40), prepare(card()), 4, "image", read_ahead)
    for n, _ in enumerate(feeds):
        assert len(read) <= 4 * n + most
    assert read == list(range(40))


@pytest.mark.parametrize("read_ahead", [False, True])
def test_batches_stop_early_and_pass_errors_on(class_folder, card, read_ahead):
    (class_folder / "cat" / "1.png").write_bytes(b"")
    feeds = batches(open_data(class_folder, card()), range(6), prepare(card()), 2, "x", read_ahead)
    next(iter(feeds))
    with pytest.raises(DataError, match=r"cat/1\.png: the file is empty"):
        list(feeds)


def test_batches_of_nothing(class_folder, card):
    dataset = open_data(class_folder, card())
    assert list(batches(dataset, [], prepare(card()), 2, "x", True)) == []
    with pytest.raises(ValueError, match="batch_size = 0"):
        batches(dataset, [0], prepare(card()), 0, "x")


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=400), st.sampled_from([".zip", ".npz"]))
def test_any_bytes_are_data_or_a_data_error(tmp_path_factory, content, suffix):
    from modelmill.tasks import Card, Input, Output

    spec = Input("NCHW", (1, 1), "RGB", None, 1.0, (0.0,) * 3, (1.0,) * 3)
    path = tmp_path_factory.mktemp("bytes") / f"a{suffix}"
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((1, 1, 1, 3), np.uint8))
    whole = buffer.getvalue()
    for data in (content, whole[: -len(content) or None], content + whole):
        path.write_bytes(data)
        try:
            open_data(path, Card("classification", spec, Output("argmax"), 2)).sample(0)
        except DataError as error:
            assert path.name in str(error)


def test_the_bytes_of_a_file_are_there(photos):
    card = load_card(photos.card)
    data = open_data(photos.data, card)
    for held, i in ((data, 7), (data.subset([3, 7]), 1)):
        assert held.encoded(i) == (Path(photos.data) / "images" / "07.jpg").read_bytes()
    pixels = [np.zeros((16, 16, 3), np.uint8)]
    assert open_data(pixels, card).encoded is None
