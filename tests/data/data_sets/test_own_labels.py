"""Labels from files, metadata and data sets with any columns: one class, several, or numbers; and groups."""

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import MEDIA, load_folder, write_files

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.batching import label_tensor
from liere_hf.data.data_sets.groups import choose_groups
from liere_hf.errors import InputError

KINDS = ("csv", "tsv", "jsonl", "parquet")
every_medium = pytest.mark.parametrize("medium", MEDIA)


def write_table(path: Path, columns: dict[str, list]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def load(medium: str = "imagefolder", seed: int = 0, **options):
    options = {"frame_stride": 1, "data_num_proc": 1} | options
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return load_splits(DataArguments(dataset=medium, **options), seed)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Ten files, x0.png to x9.png, in one folder."""
    return write_files(tmp_path / "pictures", "imagefolder", [f"x{number}" for number in range(10)])


NAMES = [f"x{number}.png" for number in range(10)]


def labels_of(table) -> dict[str, object]:
    """Labels by file name, classes by their names."""
    feature = table.features["label"]
    name = {"ClassLabel": lambda value: feature.int2str(value), "dict": lambda value: value}.get(
        type(feature).__name__, lambda values: [feature.feature.int2str(value) for value in values]
    )
    column = next(name for name in ("image", "video", "volume") if name in table.column_names)
    return {Path(row[column]["path"]).name: name(row["label"]) for row in table}


@every_medium
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_paths_and_labels(tmp_path, medium, kind):
    _, suffix, word = MEDIA[medium]
    write_files(tmp_path / "files", medium, [f"{split}/{number}" for split in "abc" for number in range(4)])
    expected = {}
    for split, folder in (("train", "a"), ("validation", "b"), ("test", "c")):
        names = [f"files/{folder}/{number}{suffix}" for number in range(4)]
        labels = ["cat", "dog", "cat", "dog"]
        write_table(tmp_path / f"{split}.{kind}", {word: names, "label": labels})
        expected[split] = dict(zip((Path(name).name for name in names), labels, strict=True))
    files = {f"{split}_file": tmp_path / f"{split}.{kind}" for split in expected}
    splits = load(medium, **files)
    assert {split: labels_of(table) for split, table in splits.tables.items()} == expected
    assert splits.label_names == ["cat", "dog"] and splits.problem_type == "single_label_classification"
    assert splits.held_out is None
    # Without a validation file, some are held out; the test file stays.
    del files["validation_file"]
    write_files(tmp_path / "files", medium, [f"a/{number}" for number in range(10)])
    names = [f"files/a/{number}{suffix}" for number in range(10)]
    write_table(tmp_path / f"train.{kind}", {word: names, "label": ["cat", "dog"] * 5})
    counts = load(medium, **files).facts()["splits"]
    assert counts == {"train": {"cat": 4, "dog": 4}, "validation": {"cat": 1, "dog": 1}, "test": {"cat": 2, "dog": 2}}


def test_paths_are_relative_to_the_file_or_to_data_dir_or_absolute(pictures, tmp_path):
    columns = {"path": NAMES, "label": ["a", "b"] * 5}
    beside = load(train_file=write_table(pictures / "train.csv", columns))
    elsewhere = load(train_file=write_table(tmp_path / "lists" / "train.csv", columns), data_dir=pictures)
    columns["path"] = [str(pictures / name) for name in NAMES]
    absolute = load(train_file=write_table(tmp_path / "lists" / "absolute.csv", columns))
    assert labels_of(beside.train) == labels_of(elsewhere.train) == labels_of(absolute.train)


def test_columns_have_any_names(pictures):
    columns = {"id": [*range(10)], "scan": NAMES, "diagnosis": ["ill", "well"] * 5, "label": ["no"] * 10}
    path = write_table(pictures / "train.csv", columns)
    splits = load(train_file=path, image_column_name="scan", label_column_name=["diagnosis"])
    assert splits.label_names == ["ill", "well"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_classes_are_what_is_written(pictures, kind):
    """Nothing is taken for a missing value or for a number."""
    names = ["NA", "None", "null", "nan", "001"]
    path = write_table(pictures / f"train.{kind}", {"path": NAMES, "label": names * 2})
    splits = load(train_file=path, eval_fraction=0.5)
    assert splits.label_names == sorted(names)
    assert labels_of(splits.train) | labels_of(splits.validation) == dict(zip(NAMES, names * 2, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convert", [int, float])
def test_numbers_as_classes_are_in_the_order_of_numbers(pictures, kind, convert):
    values = [2, 10, 9, -1, 100] * 2
    if kind in ("csv", "tsv") and convert is float:
        pytest.skip("text stays text")
    path = write_table(pictures / f"train.{kind}", {"path": NAMES, "label": [convert(value) for value in values]})
    splits = load(train_file=path, eval_fraction=0.5)
    assert splits.label_names == ["-1", "2", "9", "10", "100"]


LISTS = [["a"], ["a", "b"], [], ["c"], ["b", "c"]] * 2


@pytest.mark.parametrize(
    "kind, labels, options",
    [
        ("csv", ["|".join(row) for row in LISTS], {}),
        ("tsv", [" ; ".join(row) for row in LISTS], {"label_separator": ";"}),
        ("parquet", LISTS, {}),
        ("jsonl", LISTS, {}),
        ("csv", None, {"label_column_name": ["a", "b", "c"]}),
        ("parquet", None, {"label_column_name": ["a", "b", "c"]}),
    ],
)
def test_several_classes_of_an_example(pictures, kind, labels, options):
    columns = {"path": NAMES}
    if labels is None:
        columns |= {name: [int(name in row) for row in LISTS] for name in "abc"}
    else:
        columns["label"] = labels
    path = write_table(pictures / f"train.{kind}", columns)
    splits = load(train_file=path, problem_type="multi_label_classification", **options)
    assert splits.problem_type == "multi_label_classification" and splits.label_names == ["a", "b", "c"]
    found = labels_of(splits.train) | labels_of(splits.validation)
    assert found == dict(zip(NAMES, LISTS, strict=True))
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    rows = splits.train["label"][:]
    expected = [[float(index in row) for index in range(3)] for row in rows]
    assert label_tensor(rows, 3).tolist() == expected
    counts = splits.facts()["splits"]
    assert {name: counts["train"][name] + counts["validation"][name] for name in "abc"} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [["age"], ["age", "weight"]])
def test_numbers(pictures, kind, columns):
    values = {name: [1.5 * number - len(name) for number in range(10)] for name in columns}
    path = write_table(pictures / f"train.{kind}", {"path": NAMES} | values)
    splits = load(train_file=path, problem_type="regression", label_column_name=columns)
    assert splits.problem_type == "regression" and splits.label_names == columns
    found = labels_of(splits.train) | labels_of(splits.validation)
    assert found == {name: {key: values[key][row] for key in columns} for row, name in enumerate(NAMES)}
    assert splits.facts()["splits"] == {"train": 8, "validation": 2}
    rows = splits.train["label"][:]
    targets = label_tensor(rows, len(columns))
    assert targets.dtype == torch.float32 and targets.tolist() == [[row[name] for name in columns] for row in rows]


BAD = {"path": NAMES, "label": ["a", "b"] * 5}


@pytest.mark.parametrize(
    "columns, options, message",
    [
        ({"path": NAMES, "class": ["a"] * 10}, {}, r"train\.csv has no column label, only path, class"),
        ({"picture": NAMES, "label": ["a"] * 10}, {}, r"no column image or file_name or path or file, only picture"),
        (BAD, {"image_column_name": "scan"}, r"no column scan, only path, label"),
        (BAD, {"group_column": "patient"}, r"no column patient, only path, label"),
        (BAD | {"label": ["a", ""] * 5}, {}, r"train\.csv has no label in row 2"),
        (BAD | {"path": [*NAMES[:8], "gone.png", "lost.png"]}, {}, r"lists 2 images that do not exist: .*gone\.png"),
        (BAD | {"path": [*NAMES[:9], "x0.png"]}, {}, r"lists .*x0\.png more than once"),
        (BAD | {"path": [*NAMES[:9], ""]}, {}, r"has no path or content in row 10 of the column path"),
        (BAD, {"problem_type": "regression"}, r"has label 'a' in row 1, allowed are numbers"),
        (BAD, {"label_column_name": ["label", "path"]}, r"label_column_name is label, path, allowed is one column"),
        (
            {"path": NAMES, "a": ["0"] * 10, "b": ["2"] * 10},
            {"label_column_name": ["a", "b"], "problem_type": "multi_label_classification"},
            r"has b 2 in row 1, allowed are 0 and 1",
        ),
        (BAD | {"label": ["a"] * 10}, {}, r"has the one class 'a', a classifier needs two or more"),
        ({"path": [], "label": []}, {}, r"train\.csv lists no images"),
        (BAD, {"group_column": "label", "group_pattern": "x"}, r"group_column and group_pattern are given"),
        (BAD, {"group_pattern": "("}, r"group_pattern is '\(', allowed is a regular expression"),
        (BAD, {"group_pattern": "y[0-9]"}, r"group_pattern 'y\[0-9\]' does not match x0\.png, x1\.png, x2\.png and 7"),
    ],
)
def test_what_is_wrong_with_a_file(pictures, columns, options, message):
    path = write_table(pictures / "train.csv", columns)
    with pytest.raises(InputError, match=message):
        load(train_file=path, **options)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train.csv", b"path,label\nx0.png\n", r"row 1 has 1 values, its header 2"),
        ("train.csv", b"path,path\nx0.png,1\n", "its header names a column twice"),
        ("train.csv", b"\xff\xfe\x00", "cannot be read"),
        ("train.parquet", b"text", "cannot be read"),
        ("train.jsonl", b"{path", "cannot be read"),
        ("train.xlsx", b"", r"is not a file of type \.csv, \.tsv, \.jsonl, \.parquet"),
        ("gone.csv", None, "cannot be read: .*No such file"),
    ],
)
def test_files_that_cannot_be_read(pictures, name, content, message):
    if content is not None:
        (pictures / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(train_file=pictures / name)


def test_missing_files_are_left_out_and_told(pictures):
    columns = {"path": [*NAMES, "gone.png"], "label": ["a", "b"] * 5 + ["a"]}
    splits = load(train_file=write_table(pictures / "train.csv", columns), skip_corrupt_files=True)
    assert splits.left_out == [(str(pictures / "gone.png"), "listed in train.csv but missing")]
    assert len(splits.train) + len(splits.validation) == 10


def test_a_byte_order_mark_and_quotes(pictures):
    (pictures / "train.csv").write_bytes(
        "\ufeffpath,label\n".encode()
        + b"".join(f'"{name}","a, {row % 2}"\n'.encode() for row, name in enumerate(NAMES))
    )
    assert load(train_file=pictures / "train.csv").label_names == ["a, 0", "a, 1"]


def test_contents_in_parquet(pictures):
    contents = [(pictures / name).read_bytes() for name in NAMES]
    for number, column in enumerate((contents, [{"bytes": content, "path": "a.png"} for content in contents])):
        path = write_table(pictures / f"{number}.parquet", {"image": column, "label": ["a", "b"] * 5})
        splits = load(train_file=path)
        assert len(splits.train) == 8 and splits.train[0]["image"]["bytes"] == contents[0]


def test_other_data_sets_take_no_label_files(pictures):
    path = write_table(pictures / "train.csv", BAD)
    for options in ({"train_file": path}, {"group_pattern": "x"}, {"problem_type": "regression"}):
        message = (
            f"{next(iter(options))} is given, which digits does not take: allowed with it are the data sets image"
        )
        with pytest.raises(InputError, match=message):
            load("digits", **options)


def test_a_file_in_two_splits(pictures):
    train = write_table(pictures / "train.csv", BAD)
    test = write_table(pictures / "test.csv", {"path": NAMES[3:4], "label": ["a"]})
    with pytest.raises(InputError, match=r"x3\.png is in train and in test, allowed is one split"):
        load(train_file=train, test_file=test)


@every_medium
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_beside_files(tmp_path, medium, kind):
    """In one folder, in each split folder, and above split folders."""
    suffix = MEDIA[medium][1]
    one = write_files(tmp_path / "one", medium, [f"x{number}" for number in range(10)] + ["unlisted"])
    names = [f"x{number}{suffix}" for number in range(10)]
    write_table(one / f"metadata.{kind}", {"file_name": names, "label": ["a", "b"] * 5})
    splits = load_folder(one, medium)
    assert splits.facts()["splits"] == {"train": {"a": 4, "b": 4}, "validation": {"a": 1, "b": 1}}
    assert splits.left_out == [(str(one / f"unlisted{suffix}"), "not listed in the metadata")]

    each = tmp_path / "each"
    for split in ("train", "val"):
        write_files(each / split, medium, ["x0", "x1", "deep/x2", "x3"])
        names = [f"{name}{suffix}" for name in ("x0", "x1", "deep/x2", "x3")]
        write_table(each / split / f"metadata.{kind}", {"file_name": names, "label": ["a", "b"] * 2})
    counts = {"train": {"a": 2, "b": 2}, "validation": {"a": 2, "b": 2}}
    assert load_folder(each, medium).facts()["splits"] == counts
    (each / "val" / f"metadata.{kind}").unlink()
    with pytest.raises(InputError, match=r"val has no metadata\.csv or .*, unlike .*train"):
        load_folder(each, medium)
    (each / "train" / f"metadata.{kind}").unlink()
    names = [f"{split}/{name}{suffix}" for split in ("train", "val") for name in ("x0", "x1", "deep/x2", "x3")]
    write_table(each / f"metadata.{kind}", {"file_name": names, "label": ["a", "b"] * 4})
    splits = load_folder(each, medium)
    assert splits.facts()["splits"] == counts and splits.left_out == []


def test_metadata_without_labels_is_told(tmp_path):
    write_files(tmp_path, "imagefolder", [f"{name}/{number}" for name in ("a", "b") for number in range(5)])
    write_table(tmp_path / "metadata.csv", {"file_name": ["a/0.png"], "text": ["words"]})
    splits = load_folder(tmp_path, "imagefolder")
    assert splits.label_names == ["a", "b"]
    assert [Path(file).name for file, _ in splits.left_out] == ["metadata.csv"]
    with pytest.raises(
        InputError, match=r"problem_type is 'regression', which needs a table of labels: .* has no meta"
    ):
        load_folder(tmp_path, "imagefolder", problem_type="regression")
    with pytest.raises(InputError, match="group_column is 'who', which needs a table of labels"):
        load_folder(tmp_path, "imagefolder", group_column="who")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def hub_copy(pictures: Path, directory: Path, saved: bool, features: dict, columns: dict) -> Path:
    """A data set in parquet files, which `load_dataset` reads as it reads the Hub, or as `save_to_disk` writes it."""
    contents = [{"bytes": (pictures / name).read_bytes(), "path": name} for name in NAMES]
    table = datasets.Dataset.from_dict(
        {"picture": contents} | columns, features=datasets.Features({"picture": datasets.Image()} | features)
    )
    directory.mkdir()
    if saved:
        datasets.DatasetDict({"train": table, "dev": table.select(range(4))}).save_to_disk(directory)
    else:
        table.to_parquet(directory / "train-00000-of-00001.parquet")
        table.select(range(4)).to_parquet(directory / "validation-00000-of-00001.parquet")
    return directory


@pytest.mark.parametrize("saved", [False, True])
def test_a_data_set_of_the_hub(pictures, tmp_path, cache, saved):
    features = {"kind": datasets.ClassLabel(names=["z", "a"]), "who": datasets.Value("string")}
    columns = {"kind": [0, 1] * 5, "who": [f"p{number}" for number in range(10)]}
    source = hub_copy(pictures, tmp_path / "hub", saved, features, columns)
    splits = load(hub_id=source, label_column_name=["kind"])
    assert splits.label_names == ["a", "z"]
    assert splits.facts()["splits"] == {"train": {"a": 5, "z": 5}, "validation": {"a": 2, "z": 2}}
    assert labels_of(splits.train)["x0.png"] == "z"
    assert load(hub_id=source, label_column_name=["kind"], image_column_name="picture").label_names == ["a", "z"]
    with pytest.raises(InputError, match="has no column label, only picture, kind, who"):
        load(hub_id=source)
    with pytest.raises(InputError, match="the group 'p0' is in train and in validation, and so are 3 others"):
        load(hub_id=source, label_column_name=["kind"], group_column="who")


def test_several_labels_and_numbers_of_the_hub(pictures, tmp_path, cache):
    lists = [[0], [0, 1], [], [1], [1]] * 2
    features = {"tags": datasets.List(datasets.ClassLabel(names=["z", "a"])), "age": datasets.Value("int64")}
    source = hub_copy(pictures, tmp_path / "hub", False, features, {"tags": lists, "age": [*range(10)]})
    splits = load(hub_id=source, label_column_name=["tags"], problem_type="multi_label_classification")
    assert labels_of(splits.train) == {
        name: [["z", "a"][label] for label in row] for name, row in zip(NAMES, lists, strict=True)
    }
    splits = load(hub_id=source, label_column_name=["age"], problem_type="regression")
    assert labels_of(splits.train) == {name: {"age": number} for number, name in enumerate(NAMES)}


def groups_of(table, name) -> set[str]:
    return {name(Path(row["image"]["path"])) for row in table}


@pytest.mark.parametrize("source", ["folders", "column", "file pattern"])
def test_groups_are_never_on_both_sides(tmp_path, source):
    """Six patients with one to six pictures of each class."""
    names = [
        f"{label}/p{patient}_{number}" for label in ("a", "b") for patient in range(1, 7) for number in range(patient)
    ]
    write_files(tmp_path, "imagefolder", names)
    files = [f"{name}.png" for name in names]
    if source == "folders":
        options = {"data_dir": tmp_path, "group_pattern": r"/(p\d)_"}
    else:
        columns = {"path": files, "label": [name[0] for name in files], "who": [name[2:4] for name in files]}
        options = {"train_file": write_table(tmp_path / "train.csv", columns)}
        options |= {"group_column": "who"} if source == "column" else {"group_pattern": r"p\d"}
    chosen = set()
    for seed in range(5):
        splits = load(seed=seed, eval_fraction=0.3, **options)
        train, validation = (
            groups_of(table, lambda path: path.name[:2]) for table in (splits.train, splits.validation)
        )
        assert train and validation and not train & validation and len(train | validation) == 6
        counts = splits.facts()["splits"]["validation"]
        assert counts["a"] == counts["b"] and 4 <= counts["a"] <= 9
        chosen.add(tuple(sorted(validation)))
    assert len(chosen) > 1


def test_given_splits_must_not_share_a_group(tmp_path):
    write_files(tmp_path, "imagefolder", ["train/a/p1_0", "train/b/p2_0", "val/a/p3_0", "val/b/p2_1"])
    with pytest.raises(InputError, match="the group 'p2' is in train and in validation, and so are 0 others"):
        load_folder(tmp_path, "imagefolder", group_pattern=r"(p\d)_")
    assert len(load_folder(tmp_path, "imagefolder").train) == 2


def test_a_class_of_one_group(tmp_path):
    names = [f"a/p1_{number}" for number in range(5)] + [f"b/p{number}_0" for number in range(5)]
    write_files(tmp_path, "imagefolder", names)
    with pytest.raises(InputError, match="all examples of 'a' are of the group 'p1', at least 2 groups are needed"):
        load_folder(tmp_path, "imagefolder", group_pattern=r"(p\d)_")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=2, max_size=60), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_chosen_groups(rows, seed):
    """Whole groups, and every class on both sides, or an error."""
    labels, groups = zip(*rows, strict=True)
    labels = torch.tensor(labels).numpy()
    try:
        held = choose_groups(labels, ["a", "b", "c"], [f"g{group}" for group in groups], 0.3, seed)
    except InputError as error:
        assert "at least 2 groups" in str(error) or "cannot be divided" in str(error)
        return
    sides = [{group for group, is_held in zip(groups, held, strict=True) if is_held == side} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert {*labels[held]} == {*labels[~held]} == {*labels}


def test_the_share_of_groups(tmp_path):
    """Of many small groups, the share of each class is what was asked for."""
    labels = torch.arange(300).numpy() % 3
    groups = [str(number // 3) for number in range(300)]
    held = choose_groups(labels, ["a", "b", "c"], groups, 0.2, 0)
    assert [held[labels == label].sum() for label in range(3)] == [20, 20, 20]
