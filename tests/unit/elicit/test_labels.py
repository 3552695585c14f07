"""Labels: what is read, what is refused, and which rows they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ual_ray.data.labels import match_labels, read_labels
from ual_ray.errors import UserError


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "labels.csv", "\ufeffid, correct,note\r\na,1,x\r\nb, FALSE ,\r\n17,true,y\r\na,1,again\r\n")
    assert read_labels(path) == {"a": True, "b": False, "17": True}
    assert read_labels(written(tmp_path, "excel.csv", "id;correct\na;1\n")) == {"a": True}


def test_jsonl(tmp_path: Path) -> None:
    lines = ['{"id": "a", "correct": true}', "", '{"id": 17, "correct": 0}', '{"id": "c", "correct": 1.0, "more": []}']
    lines += ['{"id": "d", "correct": "False"}', '{"id": 18.0, "correct": 1}']
    path = written(tmp_path, "labels.JSONL", "\n".join(lines))
    assert read_labels(path) == {"a": True, "17": False, "c": True, "d": False, "18": True}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "id,correct\na,1\n", "unknown file extension"),
        ("a.csv", "", "no label"),
        ("a.csv", "id,correct\n", "no label"),
        ("a.jsonl", "\n\n", "no label"),
        ("a.csv", "name,correct\na,1\n", r"lack the column \['id'\]"),
        ("a.jsonl", '{"id": "a", "correct": 1}\n{"id": "b"}\n', "label 2"),
        ("a.csv", "id,correct\na,1\nb,maybe\n", "'maybe'.*label 2"),
        ("a.csv", "id,correct\na\n", "line 2"),
        ("a.csv", "id,correct\na,2\n", "'2'.*label 1"),
        ("a.jsonl", '{"id": "a", "correct": null}\n', "label 1"),
        ("a.jsonl", '{"id": "a", "correct": NaN}\n', "label 1"),
        ("a.csv", "id,correct\n,1\n", "no id"),
        ("a.jsonl", '{"id": null, "correct": 1}\n', "no id"),
        ("a.csv", "id,correct\na,1\nb,1\na,0\n", "both good and wrong.*\n.*label 3"),
        ("a.jsonl", "{'id': 1}\n", "not JSON: line 1"),
        ("a.jsonl", "[1, 2]\n", "not a JSON object"),
        ("a.csv", 'id,correct,note\na,1,"x\nb,0,y\nc,1,z"\n', "its quotes hold lines that look like rows"),
        ("a.csv", "id,correct\na,1,b,0\n", "wrong number of cells: line 2"),
        ("a.csv", "id,correct,id\na,1,a\n", "(?s)two columns of the same name.*a.csv"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_labels(written(tmp_path, name, text))
    assert "data.path" not in str(caught.value)


def test_a_missing_file_a_folder_and_no_text(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            read_labels(path)
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,correct\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(path)


def test_the_content_id_goes_before_the_datas_own() -> None:
    ids = pa.chunked_array([["aa", "bb"], ["cc"]])
    given = pa.chunked_array([["1", "2", None]], pa.string())
    found = match_labels({"aa": False, "1": True, "2": True}, ids, given)
    np.testing.assert_array_equal(found, [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(match_labels({"cc": True}, ids, pa.chunked_array([pa.nulls(3)])), [np.nan, np.nan, 1.0])


def test_no_match_shows_an_id_of_each_side() -> None:
    with pytest.raises(UserError, match="'zz'") as caught:
        match_labels({"zz": True}, pa.chunked_array([["aa"]]), pa.chunked_array([["row-1"]]))
    assert "'aa'" in str(caught.value) and "'row-1'" in str(caught.value)


def test_a_label_of_an_id_that_repeats_is_refused() -> None:
    ids, given = pa.chunked_array([["aa", "bb"]]), pa.chunked_array([["0", "0"]])
    with pytest.raises(UserError, match="(?s)that of several rows.*'0'.*content id"):
        match_labels({"0": True}, ids, given)
    assert match_labels({"bb": True}, ids, given)[1] == 1
