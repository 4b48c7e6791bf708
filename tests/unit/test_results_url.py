"""Where results are kept, and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.results import Results, database_url
from targets.base import FleetError


def test_where_results_are_kept(tmp_path: Path) -> None:
    assert database_url(tmp_path).database == str(tmp_path / "results.db")
    assert database_url(tmp_path, "/var/lib/r.db").database == "/var/lib/r.db"
    assert database_url(tmp_path, "~/r.db").database == str(Path.home() / "r.db")
    assert str(database_url(tmp_path, "sqlite:////tmp/r.db")) == "sqlite:////tmp/r.db"
    for given in ("postgresql://u:secret@h/d", "postgres://u:secret@h/d", "postgresql+psycopg2://u:secret@h/d"):
        assert database_url(tmp_path, given).drivername == "postgresql+psycopg", given
    assert "secret" not in str(database_url(tmp_path, "postgresql://u:secret@h/d"))


@pytest.mark.parametrize("given", ["mysql://u:secret@h/d", "://u:secret@h", "postgresql://u:secret@h:port/d"])
def test_other_addresses_are_refused_without_their_password(tmp_path: Path, given: str) -> None:
    with pytest.raises(FleetError) as error:
        database_url(tmp_path, given)
    assert error.value.code == "bad-results-url"
    assert "secret" not in error.value.message + error.value.hint


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    path.write_text("this is not a database " * 100)
    with pytest.raises(FleetError, match="file is not a database") as error:
        Results(database_url(tmp_path))
    assert error.value.code == "results"
    assert path.read_text().startswith("this is not")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError) as error:
        Results(database_url(tmp_path / "file"))
    assert error.value.code == "results"
