"""Decide whether the best variant should replace the registered one: `python -m tools.promote`.

The best variant is compared with the version that the registry's stage has now, or with base where it has none. It must
be better on the target set, not worse by the margin (evaluation.margin) on every other set and on general text, and
`python -m tools.verify` must find all results in order. With --yes, a promotion becomes GTO's Git tags, with the reasons
in their message; `python -m tools.publish` puts them into the model card.

Exit status: 0 promote, 3 do not promote, 4 undecided; 1 is an error, as of every command here.
"""

from __future__ import annotations

from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import BASE, load_params
from abctune.study.inputs import OVERALL, read_study
from tools.command import run_command
from tools.promote.decision import Answer, Criterion, Decision, best_variant, compare_with, decide, fault_of
from tools.promote.registry import Registered, registered, scores_of, tag
from tools.verify.run import verify

STATUS: dict[Answer, int] = {"promote": 0, "do not promote": 3, "undecided": 4}
MARKS = {True: "+", False: "-", None: "?"}


@exits_with_one_line
def main(
    variant: Annotated[str | None, typer.Argument(help="the candidate; the best one if left out")] = None,
    stage: Annotated[str, typer.Option(help="the registry's stage")] = "prod",
    target: Annotated[str, typer.Option(help="the set to be better on: overall or a source")] = OVERALL,
    yes: Annotated[bool, typer.Option("--yes", help="write GTO's tags if the answer is to promote")] = False,
) -> None:
    """Say promote, do not promote or undecided, with the reasons.

    Exit status: 0 promote, 3 do not promote, 4 undecided; 1 is an error.
    """
    params = load_params()
    if variant is not None:
        params.require_variant(variant)
    current = registered(stage)
    decision = decision_on(variant, target, current)
    print(report(decision, current))
    if decision.answer == "promote" and yes:
        names = tag(decision.variant, stage, report(decision, current))
        print(f"tagged: {', '.join(names)}; `git push origin --tags` shares them")
    raise typer.Exit(STATUS[decision.answer])


def decision_on(variant: str | None, target: str, current: Registered | None) -> Decision:
    """Read the study and the registered version's scores, and judge.

    Raises:
        UserError: an input is missing, or there is no such set.
    """
    params = load_params()
    study = read_study(params)
    if target not in study.sets:
        raise UserError(f"no set {target!r}; this study has {', '.join(study.sets)}")
    in_use = scores_of(current) if current else study.models[BASE]
    if current and (fault := fault_of(study, in_use)):
        reason = f"{current.title} cannot be compared: this study's models and it {fault}"
        return Decision(variant or "the best variant", [Criterion(reason, None)])
    found = compare_with(study, in_use)
    candidate = variant or best_variant(study, found, target)
    faults = verify(params).faults
    return decide(candidate, current.title if current else BASE, found, study.sets, target, faults)


def report(decision: Decision, current: Registered | None) -> str:
    """The answer, then a line per condition: met (+), not met (-), open (?)."""
    instead = f"instead of {current.title}" if current else "as the first"
    lines = [f"{decision.answer}: {decision.variant} {instead}"]
    return "\n".join([*lines, *(f"  {MARKS[c.met]} {c.text}" for c in decision.criteria)])


if __name__ == "__main__":
    run_command(main)
