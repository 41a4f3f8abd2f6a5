"""Compiled kernels are kept in a folder for a card and a set of versions."""

from abctune.llm import environment


def test_a_card_has_a_folder_of_its_own_and_other_versions_another(tmp_path, monkeypatch):
    assert environment.compiled_folder(tmp_path) is None, "no card, nothing compiled for one"
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   110\n")
    folder = environment.compiled_folder(tmp_path)
    assert folder.parent.name == ".compiled"
    assert folder.name.startswith("NVIDIA-H100-80GB-HBM3-")
    assert environment.compiled_folder(tmp_path) == folder
    monkeypatch.setattr(environment, "version", lambda package: "0.1")
    assert environment.compiled_folder(tmp_path) != folder
