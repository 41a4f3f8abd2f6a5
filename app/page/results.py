"""The Results tab: what the report of the served study says, from the files that the stage plot writes."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from abctune.core.params import BASE
from abctune.core.records import StudyRecord, SummaryRecord
from app.about import origin, root_of, studies
from app.models import Models
from app.optional_records import study_of, summary_of
from app.page.style import colors_of
from app.page.view import dot_html
from app.service import Service

PLOTS = Path("plots")
FIGURES = {
    "forest": "Paired differences in test loss with 95 % intervals; right, the same near 0. Filled: better or worse is shown after correction.",
    "curves": "Train loss, validation loss and learning rate, by optimizer step. Compare the losses of variants with the same data only.",
    "test_loss": "Test loss of every model, with each replicate's as a small dot.",
}
NONE = "No results here: `dvc repro` makes them, `dvc pull` brings them."


def results_html(service: Service) -> str:
    """Verdicts, losses and figures of each study that is served."""
    models = service.models
    found = studies(models)
    parts = "".join(
        f"<section>{f'<h2>{escape(origin(root))}</h2>' if len(found) > 1 else ''}{_stale(models, root)}{_study_html(root, models.variants)}</section>"
        for root in found
    )
    return f'<div class="results studies">{parts}</div>'


def _stale(models: Models, root: Path) -> str:
    """A note on the study's variants that were trained again after they were scored; empty if there are none."""
    names = [models.adapters[name].path.name for name in models.unscored if name in models.adapters
             and root_of(models, name) == root]  # fmt: skip
    if not names:
        return ""
    words = f"Trained again since they were scored, so not what is below: {', '.join(sorted(names))}. `dvc repro` scores them."
    return f'<p role="note"><strong>{escape(words)}</strong></p>'


def _study_html(root: Path, variants: tuple[str, ...]) -> str:
    summary, study = summary_of(root), study_of(root)
    if summary is None:
        return f'<p class="quiet">{escape(NONE)}</p>'
    colors = colors_of(variants)
    lines = study.headlines if study else ()
    headlines = "".join(f"<li>{escape(line)}</li>" for line in lines)
    from_where = origin(root)
    scored = ""
    if study:
        sets = ", ".join(f"{one.n:,} {one.name}" for one in study.sets)
        scored = f"Profile {study.profile}; scored on the common test rows of mix {study.test_of} ({sets}). "
    return (
        f'<p class="quiet">{escape(scored)}Better means a lower test loss: closer to the training data\'s style, not truer. '
        f"The whole report is plots/report.html{escape(f' ({from_where})' if from_where else '')}.</p>"
        + (f"<h2>Verdicts</h2><ul>{headlines}</ul>" if headlines else "")
        + f"<h2>Test loss</h2>{_table(summary, study, colors)}"
        + f"<h2>Pairs</h2>{_pairs(summary)}"
        + f'<h2>Figures</h2><div class="plots">{"".join(_figure(root, name, words, summary) for name, words in FIGURES.items())}</div>'
    )


def _table(summary: SummaryRecord, study: StudyRecord | None, colors: dict[str, str]) -> str:
    """A row per model: its loss on every set, and its recipe's verdict compared with base."""
    sets = list(dict.fromkeys(name for model in summary.models.values() for name in model.loss))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in sets)
    rows = []
    for name, model in summary.models.items():
        verdict = model.vs_base or ("the reference" if name == BASE else "–")
        losses = [_loss(study, name, on, model.loss.get(on)) for on in sets]
        cells = "".join(f"<td>{_whole(text)}</td>" for text in (*losses, verdict, model.forgetting or "–"))
        rows.append(f'<tr><th scope="row">{dot_html(colors.get(name))}{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Test loss"><table><thead><tr><th scope="col">model</th>{head}'
        f'<th scope="col">against base, overall</th><th scope="col">on general text</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<p class="quiet">Nats per supervised token, with 95 % intervals where metrics/study.json is there.</p>'
    )


def _whole(text: str) -> str:
    """A cell's text, in which a narrow column breaks no line within an interval."""
    return re.sub(r"\[[^]]*\]", r"<span>\g<0></span>", escape(text))


def _loss(study: StudyRecord | None, model: str, on: str, value: float | None) -> str:
    if value is None:
        return "–"
    found = next(
        (v for v in study.values if (v.metric, v.model, v.on) == ("loss", model, on)) if study else iter(()),
        None,
    )
    interval = (
        f" [{found.low:.2f}, {found.high:.2f}]"
        if found and found.low is not None and found.high is not None
        else ""
    )
    return f"{value:.3f}{interval}"


def _pairs(summary: SummaryRecord) -> str:
    lines = "".join(
        f"<li>{escape(pair.replace('_vs_', ' compared with '))}: {escape(verdict)}</li>"
        for pair, verdict in summary.verdict.items()
    )
    return f"<ul>{lines}</ul>" if lines else '<p class="quiet">Each variant is compared with base alone.</p>'


def _figure(root: Path, name: str, words: str, summary: SummaryRecord) -> str:
    """A figure as an image of its own, so that its ids and styles touch nothing else on the page."""
    file = root / PLOTS / f"{name}.svg"
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    said = "; ".join(f"{model} {one.vs_base}" for model, one in summary.models.items() if one.vs_base)
    alt = (
        f"{words} Against base: {said}." if name == "forest" else f"{words} The table above holds the losses."
    )
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}" loading="lazy">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )
