"""What a base model's license asks for, by its own name and version."""

from __future__ import annotations

import pytest

from abctune.core.licenses import Terms, terms_of


@pytest.mark.parametrize(
    ("license_", "prefix", "sentence", "notice"),
    [
        (
            "llama3.2",
            "Llama",
            "Built with Llama.",
            "Llama 3.2 is licensed under the Llama 3.2 Community License",
        ),
        ("Llama 4 Community License", "Llama", "Built with Llama.", "Llama 4 is licensed under the Llama 4 "),
        ("llama3", "Llama 3", "Built with Meta Llama 3.", "Meta Llama 3 is licensed under the Meta Llama 3 "),
        ("llama2", "", "", "Llama 2 is licensed under the LLAMA 2 Community License"),
        (
            "gemma",
            "",
            "",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev",
        ),
        (
            "qwen-research",
            "",
            "Built with Qwen.",
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT",
        ),
    ],
)
def test_terms_of_a_license(license_, prefix, sentence, notice):
    found = terms_of(license_)
    assert (found.prefix, found.sentence) == (prefix, sentence)
    assert found.notice.startswith(notice)
    assert ("Meta Platforms" in found.notice) == ("lama" in license_)


@pytest.mark.parametrize("license_", ["apache-2.0", "MIT", "cc-by-nc-4.0", "none", "own model"])
def test_others_ask_for_no_text_of_their_own(license_):
    assert terms_of(license_) == Terms()
