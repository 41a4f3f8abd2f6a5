"""A difference in words. No winner is named without an interval, against the correction, or, of recipes, from single runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from abctune.core.params import BASE
from abctune.core.records import GENERAL, LOSS
from abctune.study.comparison import Comparison, Difference
from abctune.study.inputs import OVERALL
from abctune.study.recipes import Outcome
from abctune.study.wording import at_two_digits, duration, interval, listed, sorted_by_size, with_unit

DECIDED = ("better", "worse")


@dataclass(frozen=True)
class Verdict:
    """One difference and what it is called."""

    difference: Difference
    short: str  # for `dvc exp show`: "better by 0.12 [0.09, 0.15]"
    text: str  # a sentence for the report

    @property
    def outcome(self) -> Outcome:
        """Of difference.model, compared with difference.reference."""
        return self.difference.outcome


def verdicts_of(comparison: Comparison) -> list[Verdict]:
    """A verdict per difference, in their order."""
    return [marked(verdict_of(difference, comparison)) for difference in comparison.differences]


def marked(verdict: Verdict) -> Verdict:
    """With "one run" in the short form too, where that is all there was."""
    if verdict.difference.about == "recipes":
        return verdict
    return replace(verdict, short=f"one run: {verdict.short}")


def verdict_of(d: Difference, comparison: Comparison) -> Verdict:
    """Put one difference in words."""
    model, reference = (named(name, d) for name in d.pair)
    margin = margin_words(comparison)
    size_of_study = d.on.size + common_replicates(d, comparison)
    if d.is_same and d.outcome == "equivalent":
        text = f"{model} and {reference} are the same {where(d)}: no row of any replicate differs, {size_of_study}."
        return Verdict(d, "the same", sentence(text))
    if d.low is None or d.high is None:
        reason = f"{d.why_no_interval}, so there is no interval ({size_of_study})"
        text = f"{model} compared with {reference} {where(d)}: undecided; {reason}."
        return Verdict(d, "undecided: no interval", sentence(text))
    near = comparison.margin if d.outcome not in DECIDED and d.metric.name == LOSS.name else 0
    amount = interval(d.value, d.low, d.high, near)
    found = f"{d.model} − {d.reference} = {with_unit(amount, d.metric)}, {size_of_study}"
    if d.outcome in DECIDED:
        size = interval(*sorted_by_size(d.value, d.low, d.high))
        small = smaller_than(d, comparison)
        text = f"{model} is {d.outcome} than {reference} {where(d)} by {with_unit(size, d.metric)}, {size_of_study}{small}."
        return Verdict(d, f"{d.outcome} by {size}", sentence(text + one_run(d)))
    if d.outcome == "equivalent":
        text = f"{model} and {reference} are equivalent {where(d)} within ±{margin} ({found})."
        return Verdict(d, f"equivalent {amount}", sentence(text + one_run(d)))
    if d.outcome == "not worse":
        text = f"{model} is not worse than {reference} {where(d)} by more than {margin} ({found}); better is not shown."
        return Verdict(d, f"not worse {amount}", sentence(text + one_run(d)))
    if not d.low <= 0 <= d.high and d.p_holm is not None:
        found += f"; p = {d.p_holm:.2g} after correction for {comparison.tested} comparisons"
    text = f"{model} compared with {reference} {where(d)}: undecided ({found}). {what_it_takes(d)}"
    return Verdict(d, f"undecided {amount}", sentence(text.rstrip() + one_run(d)))


def named(model: str, d: Difference) -> str:
    """A model in a sentence: with one replicate only its adapter can be spoken of."""
    return model if d.about == "recipes" or model == BASE else f"this adapter of {model}"


def where(d: Difference) -> str:
    """On which set, and by which metric where it is not the loss."""
    return d.on.where if d.metric.name == LOSS.name else f"{d.on.where} in {d.metric.name}"


def common_replicates(d: Difference, comparison: Comparison) -> str:
    """What to add where one of the two was trained more often than they are compared."""
    k = len(d.by_replicate)
    if all(comparison.replicates.get(name, k) <= k for name in d.pair):
        return ""
    return f", {'replicate 1' if k == 1 else f'the first {k} replicates'} of each"


def margin_words(comparison: Comparison) -> str:
    """The margin as the params have it."""
    return f"{comparison.margin:g}"


def smaller_than(d: Difference, comparison: Comparison) -> str:
    """What to add to a difference that is shown but smaller than the margin throughout."""
    return f" (less than the margin of {margin_words(comparison)})" if d.is_within_margin else ""


def one_run(d: Difference) -> str:
    """The clause that every sentence from single runs ends with."""
    return "" if d.about == "recipes" else " One run: nothing is said about the recipes."


def what_it_takes(d: Difference) -> str:
    """The cheapest study that would decide, if the true difference is the one found."""
    if d.plan is None:
        return "No study of practical size would decide on a difference this small."
    rows, replicates = d.plan.rows, d.plan.replicates
    needs = [f"{replicates:,} replicates of each" if replicates > len(d.by_replicate) else ""]
    needs += [f"{at_two_digits(rows):,} test rows" if rows > d.on.n else ""]
    more = listed([need for need in needs if need]) or "another study of this size"
    return f"About {more} would decide (80 % power, {duration(d.plan.seconds)} more)."


def headlines(verdicts: list[Verdict], comparison: Comparison) -> list[str]:
    """What to know if one reads nothing else. Single runs have no headline, only the reason why."""
    loss = [v for v in verdicts if v.difference.metric.name == LOSS.name]
    shown = [v for v in loss if v.difference.about == "recipes"]
    overall = [v for v in shown if v.difference.on.name == OVERALL]
    lines = grouped(overall) if len(overall) > MANY_PAIRS else one_by_one(overall)
    lines += forgetting(shown)
    if once := [name for name, k in comparison.replicates.items() if k == 1 and name != BASE]:
        lines.append(
            f"No headline on {listed(once)}: trained once, and one run says nothing about a recipe. "
            "`replicates` in params.yaml sets how often each variant is trained."
        )
    return lines


MANY_PAIRS = 6  # beyond three variants, a line per reference instead of one per pair


def one_by_one(overall: list[Verdict]) -> list[str]:
    """A sentence per pair that is decided, one for all that are not."""
    lines = [v.text for v in overall if v.outcome != "undecided"]
    rest = [f"{v.difference.model} vs {v.difference.reference}" for v in overall if v.outcome == "undecided"]
    return lines + ([f"Undecided overall: {listed(rest)}."] if rest else [])


def grouped(overall: list[Verdict]) -> list[str]:
    """One line per reference."""
    references = dict.fromkeys(v.difference.reference for v in overall)
    return [
        f"Overall, compared with {reference} (nats): "
        + "; ".join(f"{v.difference.model} {v.short}" for v in overall if v.difference.reference == reference)
        for reference in references
    ]


def forgetting(verdicts: list[Verdict]) -> list[str]:
    """A sentence per variant on the loss on general text, which no variant trained on."""
    return [
        forgetting_sentence(v)
        for v in verdicts
        if v.difference.on.name == GENERAL
        and v.difference.reference == BASE
        and v.difference.metric.name == LOSS.name
    ]


def forgetting_sentence(v: Verdict) -> str:
    """`C forgets: general text worse by 0.03 [0.02, 0.04]`, or its opposite."""
    d = v.difference
    if d.is_same:
        return f"{d.model} does not forget: no row of general text differs from base's."
    if d.low is None or d.high is None:
        return f"{d.model}: whether it forgets is undecided ({d.why_no_interval}, n = {d.on.n:,})."
    size = interval(*sorted_by_size(d.value, d.low, d.high))
    amount = interval(d.value, d.low, d.high)
    return {
        "worse": f"{d.model} forgets: general text worse by {size} nats.",
        "better": f"{d.model} does not forget: general text better by {size} nats.",
        "equivalent": f"{d.model} does not forget: general text equivalent to base ({amount} nats).",
        "not worse": f"{d.model} does not forget beyond the margin: general text {amount} nats from base.",
        "undecided": f"{d.model}: whether it forgets is undecided (general text {amount} nats from base).",
    }[d.outcome]


def sentence(text: str) -> str:
    """With a capital letter where the text begins with a word of ours; names stay as they are."""
    return "T" + text[1:] if text.startswith("this adapter") else text
