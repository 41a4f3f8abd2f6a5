"""What stages write for each other: typed, refused with a remedy where it does not fit, and signed with the version."""

import json

import pytest

import abctune
from abctune.core.errors import UserError
from abctune.core.records import Document, SplitRecord, read_record, write_record


def test_a_document_names_the_version_that_wrote_it_and_keeps_it_when_copied(tmp_path):
    path = tmp_path / "A.json"
    write_record(path, SplitRecord(sources={"chat": {"train": 1}}))
    assert json.loads(path.read_text())["abctune"] == abctune.__version__
    write_record(path, SplitRecord(abctune="0.0.1", sources={}))
    write_record(path, read_record(path, SplitRecord, "split@A"))
    assert json.loads(path.read_text())["abctune"] == "0.0.1"


def test_a_document_from_before_the_version_was_recorded_is_read(tmp_path):
    path = tmp_path / "A.json"
    path.write_text('{"sources": {}}')
    assert read_record(path, SplitRecord, "split@A").abctune is None


def test_every_document_with_a_stage_that_writes_it_is_signed():
    from abctune.core import records

    signed = {
        name for name, kind in vars(records).items() if isinstance(kind, type) and issubclass(kind, Document)
    }
    assert signed >= {"MixRecord", "FormatRecord", "SplitRecord", "EvalRecord", "ExportRecord", "StudyRecord"}
    assert "versions" in records.TrainingRecord.model_fields  # abctune's among them (provenance.versions)


def test_a_document_that_does_not_fit_names_file_key_and_remedy(tmp_path):
    path = tmp_path / "A.json"
    path.write_text('{"sources": 3}')
    with pytest.raises(
        UserError, match=r"A\.json is not what this version writes \(sources: .*--single-item split@A`"
    ):
        read_record(path, SplitRecord, "split@A")
