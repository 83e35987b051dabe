"""Metrics of the accuracy matrix compared with hand-computed and published values; identities; the CSV file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import matrix_metrics, read_matrix_csv, write_matrix_csv

MATRICES = st.integers(2, 6).flatmap(lambda t: arrays(float, (t + 1, t), elements=st.floats(0, 100, width=32)))
OVER_T_MINUS_1 = {
    "BWT",
    "forgetting_chaudhry_max_from_own_task",
    "forgetting_chaudhry_max_over_all_earlier_rows",
    "forgetting_max_over_all_rows_including_last",
    "transfer_per_task_from_second",
    "transfer",
    "FWT",
}


def test_made_up_matrices(golden: Path) -> None:
    matrices = json.loads((golden / "matrices.json").read_text())["made_up"]
    assert matrices
    for recorded in matrices:
        metrics = matrix_metrics(recorded["matrix"])
        assert metrics == {key: pytest.approx(value, abs=1e-9) for key, value in recorded["expected"].items()}


def test_published_lower_triangles(golden: Path) -> None:
    matrices = json.loads((golden / "matrices.json").read_text())["published"]
    assert matrices
    for recorded in matrices:
        unmeasured = [None] * len(recorded["tasks"])
        metrics = matrix_metrics([unmeasured, *recorded["matrix"]])
        for key, value in recorded["expected"].items():
            assert metrics[key] == pytest.approx(value, abs=1e-9), (recorded["name"], key)
        # the base row and the upper triangle were not published
        assert metrics["FWT"] is None
        assert metrics["transfer"] is None
        assert metrics["average_per_task"][1:] == [None] * (len(recorded["tasks"]) - 1)


def test_one_task() -> None:
    metrics = matrix_metrics([[10.0], [60.0]])
    assert {key for key, value in metrics.items() if value is None} == OVER_T_MINUS_1
    assert metrics["OP"] == metrics["average"] == metrics["learning_accuracy_mean_diagonal"] == 60
    assert metrics["BWT_over_T"] == metrics["forgetting_clipped_over_T"] == 0


def test_an_unmeasured_cell_takes_only_the_metrics_that_need_it() -> None:
    matrix = np.array([[np.nan, 5.0], [50.0, 20.0], [40.0, 70.0]])
    metrics = matrix_metrics(matrix)
    assert {key for key, value in metrics.items() if value is None} == set()
    matrix[0, 1] = np.nan
    assert {key for key, value in matrix_metrics(matrix).items() if value is None} == {"FWT"}
    matrix[2, 0] = np.nan
    assert matrix_metrics(matrix)["OP"] is None
    assert matrix_metrics(matrix)["learning_accuracy_mean_diagonal"] == 60


@given(MATRICES)
def test_clipped_is_bwt_where_nothing_improves(matrix: Any) -> None:
    matrix[-1] = np.minimum(matrix[-1], np.diag(matrix[1:]))
    metrics = matrix_metrics(matrix)
    tasks = matrix.shape[1]
    assert metrics["BWT_clipped_over_T"] == pytest.approx(metrics["BWT"] * (tasks - 1) / tasks)
    assert metrics["forgetting_clipped_over_T"] == pytest.approx(-metrics["BWT_clipped_over_T"])


@given(MATRICES)
def test_perfect_retention_forgets_nothing(matrix: Any) -> None:
    tasks = matrix.shape[1]
    for task in range(tasks):
        matrix[task + 1 :, task] = matrix[task + 1, task]
    metrics = matrix_metrics(matrix)
    for key in ("BWT", "BWT_over_T", "forgetting_clipped_over_T", "forgetting_chaudhry_max_from_own_task"):
        assert metrics[key] == 0
    assert metrics["OP"] == metrics["last"] == metrics["learning_accuracy_mean_diagonal"]


@given(MATRICES)
def test_a_wider_maximum_never_forgets_less(matrix: Any) -> None:
    metrics = matrix_metrics(matrix)
    own = metrics["forgetting_chaudhry_max_from_own_task"]
    earlier = metrics["forgetting_chaudhry_max_over_all_earlier_rows"]
    every = metrics["forgetting_max_over_all_rows_including_last"]
    assert own <= earlier <= every
    assert every >= 0


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (1, 0), (4,), (0, 0)])
def test_wrong_shape(shape: Any) -> None:
    with pytest.raises(UserError, match="one row more than it has columns"):
        matrix_metrics(np.zeros(shape))


def test_csv_round_trip(tmp_path: Path) -> None:
    matrix = np.array([[1 / 3, np.nan], [50.0, 20.0], [40.0, 0.0]])
    write_matrix_csv(tmp_path / "m.csv", ["FOMC", "a, b"], matrix)
    names, read = read_matrix_csv(tmp_path / "m.csv")
    assert names == ["FOMC", "a, b"]
    np.testing.assert_array_equal(read, matrix)


@pytest.mark.parametrize(
    "text",
    [
        "A,B\n1,2\n3,\n5,6\n",
        ",A,B\nbase,1,2\nafter A,3,\nafter B,5,6\n",
        "model,A,B\n0,1,2\n1,3,\n2,5,6\n",
        "stage of training,A,B\nbase,1,2\nafter A,3,\nafter B,5,6\n",
        "A,B\nbase,1,2\nafter A,3,nan\nafter B,5,6\n",
        "\ufeffA, B\r\n1, 2\r\n\r\n3,\r\n5, 6\r\n",
    ],
)
def test_label_column_and_blank_cells(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8", newline="")
    names, matrix = read_matrix_csv(path)
    assert names == ["A", "B"]
    np.testing.assert_array_equal(matrix, [[1, 2], [3, np.nan], [5, 6]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no accuracy matrix"),
        ("A,B\n", "no accuracy matrix"),
        ("A,B\n1,2\n3,4\n", "2 rows for 2 tasks; there must be 3"),
        ("A,B\n1,2\n3,4\n5,6\n7,8\n", "4 rows for 2 tasks"),
        ("A,B\n1,2\n3,4\n5\n", "line 4: 1 values for 2 tasks"),
        ("A,B\n1,2\n3,4,9\n5,6\n", "line 3: 3 values for 2 tasks"),
        ("A,B\n1,2\n3,x\n5,6\n", "line 3: 'x' is not a number"),
        ("A,B\n1,2\n3,inf\n5,6\n", "line 3: 'inf' is not a number"),
        (",A,B\nbase,1,2\nafter A,3,x\nafter B,5,6\n", "line 3: 'x' is not a number"),
        ("A,A\n1,2\n3,4\n5,6\n", "line 1: task names must be given and differ"),
    ],
)
def test_bad_csv_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_matrix_csv(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_unreadable_csv(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / "binary.csv"):
        with pytest.raises(UserError, match="cannot be read as CSV"):
            read_matrix_csv(path)
