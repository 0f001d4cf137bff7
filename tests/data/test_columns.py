"""Files as named columns."""

import gzip

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prefjax.data.columns import read_arrays, read_columns


def test_rows_of_several_files_are_one_table_with_none_where_a_row_has_no_value(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1, "y": [1, 2]}\n\n{"x": 2}\n')
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"z": "c"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"x": [5], "y": [[3.0, 4.0]]}), tmp_path / "c.parquet")
    columns = read_columns([tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")], progress=False)
    assert columns == {"x": [1, 2, None, 5], "y": [[1, 2], None, None, [3.0, 4.0]], "z": [None, None, "c", None]}


@pytest.mark.parametrize("line", ["[1]", "{"])
def test_what_is_no_object_is_refused(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="a.jsonl is JSON over the whole file"):
        read_columns(tmp_path / "a.jsonl", progress=False)


def test_arrays_have_the_names_they_were_saved_by(tmp_path):
    array = np.arange(12.0).reshape(3, 2, 2)
    np.save(tmp_path / "embedding.npy", array)
    np.savez(tmp_path / "more.npz", a=array, b=np.arange(3))
    assert list(read_arrays(tmp_path / "embedding.npy")) == ["embedding"]
    found = read_arrays(tmp_path / "more.npz")
    np.testing.assert_array_equal(found["a"], array)
    assert found["b"].tolist() == [0, 1, 2]


def test_arrays_that_are_no_columns_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.float64(3))
    with pytest.raises(ValueError, match="array 'one' is a single number"):
        read_arrays(tmp_path / "one.npy")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "object.npy")
    with pytest.raises(ValueError, match=r"the suffix must be one of \.npy, \.npz"):
        read_arrays(tmp_path / "x.pt")
