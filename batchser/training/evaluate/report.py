"""The tables of scores as text: what `batchser evaluate` prints and what a model card says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchser.training import protocols
from batchser.training.evaluate.held_out import CLEAN_LINE, TELEPHONE_LINE

_ROW = 26  # width of a row's name


def render_scores(scores: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Write a bundle's scores as text, the protocol's sentence first."""
    parts = [protocols.describe(scores["protocol"])]
    if scores["train_only"]:
        parts[0] += f"\nTrained on but tested by none of these scores: {', '.join(scores['train_only'])}."
    if scores.get("heard"):
        parts[0] += f"\nLeft out: {scores['heard']} clips of speakers that the model was trained on."
    parts += [
        _clips(scores["clips"], scores.get("line", TELEPHONE_LINE), as_trained=scores.get("cut") == "clip"),
        _classes(scores["clips"], labels),
        _confusion(scores["clips"], labels),
    ]
    if "degradations" in scores:
        parts.append(_degradations(scores["degradations"]))
    if "calls" in scores:
        parts.append(_calls(scores["calls"], labels))
    return "\n\n".join(parts)


def _clips(clips: Mapping[str, Any], line: str, *, as_trained: bool) -> str:
    count, cut = len(clips["by_fold"]), "cut as in training" if as_trained else "untrimmed"
    scored = "1 split" if count == 1 else f"{count} splits, each clip scored by its own split's model"
    lines = [
        f"{clips['clips']} clips of {clips['speakers']} speakers in {scored};",
        f"{cut}, {sent_down(line)}, through the job itself. 95 % intervals are bootstrapped over speakers.",
    ]
    if clips["left_out"]:
        lines.append(f"{clips['left_out']} clips were left out: the model has no label for their emotion.")
    lines += ["", *_basic(clips), *_trust(clips, "clips")]
    lines.append(f"  {'not heard':{_ROW}}{clips['not_heard']:8d}   clips without speech for the gate: counted as wrong")
    lines += [
        "",
        f"  {'':{_ROW}}{'clips':>8}{'speakers':>10}{'UAR':>8}   95 % interval{'accuracy':>11}   95 % interval",
    ]
    for key, what in (("by_corpus", "corpus"), ("by_fold", "split"), ("by_sex", "sex"), ("by_age", "age")):
        lines += [_group(f"{what} {name}", scores) for name, scores in clips[key].items()]
    if not clips["by_sex"] and not clips["by_age"]:
        lines.append("  These corpora, as they were read, state neither sex nor age: fairness is not measured.")
    return "\n".join(lines)


def sent_down(line: str) -> str:
    """Say in a few words what line the main scores are measured on."""
    return {TELEPHONE_LINE: "300-3400 Hz, mu-law", CLEAN_LINE: "no telephone added"}.get(line, line)


def _basic(scores: Mapping[str, Any]) -> list[str]:
    lines = [f"  {'':{_ROW}}{'score':>8}   95 % interval"]
    names = (
        ("uar", "UAR"),
        ("accuracy", "accuracy"),
        ("macro_f1", "macro F1"),
        ("negative_uar", "negative or not, UAR"),
    )
    for key, name in names:
        if key in scores:
            lines.append(f"  {name:{_ROW}}{scores[key]:8.3f}   {span(scores['intervals'][key])}")
    return lines


def _trust(scores: Mapping[str, Any], what: str) -> list[str]:
    """Write calibration and abstaining."""
    return [
        f"  {'calibration error':{_ROW}}{number(scores['calibration_error']):>8}   15 bins of equal mass; before "
        f"temperature scaling {number(scores['calibration_error_before'])}",
        f"  {'kept (not abstained)':{_ROW}}{scores['kept_share']:8.3f}   of {what}, at a confidence of "
        f"{scores['threshold']:.3f} or more; {number(scores['kept_accuracy'])} of these are right, "
        f"{number(scores['heard_accuracy'])} of all",
    ]


def _group(name: str, scores: Mapping[str, Any]) -> str:
    uar, accuracy = (span(scores["intervals"][key]) for key in ("uar", "accuracy"))
    return (
        f"  {name:{_ROW}}{scores['clips']:8d}{scores['speakers']:10d}{scores['uar']:8.3f}   {uar}"
        f"{scores['accuracy']:11.3f}   {accuracy}"
    )


def _classes(scores: Mapping[str, Any], labels: Sequence[str]) -> str:
    lines = [f"  {'':{_ROW}}{'true':>8}{'recall':>10}   95 % interval {'precision':>10}{'F1':>8}"]
    for label, row in zip(labels, scores["confusion"], strict=True):
        lines.append(
            f"  {label:{_ROW}}{sum(row):8d}{number(scores['recall'][label]):>10}   "
            f"{span(scores['recall_intervals'][label])}{number(scores['precision'][label]):>11}"
            f"{number(scores['f1'][label]):>8}"
        )
    return "\n".join(lines)


def _confusion(scores: Mapping[str, Any], labels: Sequence[str]) -> str:
    lines = ["  true \\ said" + "".join(f"{label[:8]:>10}" for label in labels) + "      none"]
    for label, row in zip(labels, scores["confusion"], strict=True):
        lines.append(f"  {label:11}" + "".join(f"{count:10d}" for count in row))
    return "\n".join(lines)


def _degradations(table: Mapping[str, Any]) -> str:
    which = "" if table["clips"] == table["of"] else f" of {table['of']}, drawn by a seed"
    lines = [
        f"Through degraded lines: {table['clips']} clips{which}, the same through each; points are against clean.",
        "",
        f"  {'':14}{'UAR':>8}   95 % interval{'points':>10}   95 % interval{'kept':>9}{'of these right':>16}"
        f"{'not heard':>11}",
    ]
    for name, row in table["rows"].items():
        points = (
            f"{'':10}   {'':14}"
            if name == "clean"
            else f"{row['points']:+10.1f}   {span(row['points_interval'], '+.1f'):14}"
        )
        lines.append(
            f"  {name:14}{row['uar']:8.3f}   {span(row['interval'])}{points}{row['kept_share']:8.3f}"
            f"{number(row['kept_accuracy']):>16}{row['not_heard']:11d}"
        )
    lines.append("")
    return "\n".join(lines + [f"  {name}: {row['describe']}" for name, row in table["rows"].items()])


def _calls(calls: Mapping[str, Any], labels: Sequence[str]) -> str:
    who = "whose speakers it never heard" if calls["gate_unheard"] else "some of whose speakers it heard in training"
    lines = [
        f"Windows of {calls['calls']} composed calls (split {', '.join(calls['splits'])}), each scored by the model "
        "that never heard",
        f"its customer. A window counts when its truth is plain: {100 * calls['filled']:g} % or more of it is one kind "
        "and nothing else",
        f"is in it. The gate, on calls of split {', '.join(calls['gate_splits'])}, {who}:",
        "",
        "  true kind      windows   passed as speech   same kind",
    ]
    for kind, row in calls["gate"].items():
        lines.append(
            f"  {kind:12}{row['windows']:10d}{row['passed_as_speech']:19.3f}{row['same_kind']:12.3f}"  # a share each
        )
    if "uar" not in calls:
        return "\n".join(
            [*lines, "", "No window of a customer's speech alone passed the gate: emotions are not scored."]
        )
    lines += [
        "",
        f"Emotions, where the customer's speech fills at least {100 * calls['filled']:g} % of a window: "
        f"{calls['emotion_windows']} windows of {calls['speakers']} customers;",
        f"{calls['refused']} more were refused by the gate. 95 % intervals are bootstrapped over customers.",
        "",
        *_basic(calls),
        *_trust(calls, "windows"),
    ]
    if len(calls["by_corpus"]) > 1:
        lines += [
            "",
            f"  {'':{_ROW}}{'windows':>8}{'speakers':>10}{'UAR':>8}   95 % interval{'accuracy':>11}   95 % interval",
        ]
        lines += [_group(f"corpus {name}", scores) for name, scores in calls["by_corpus"].items()]
    return "\n".join([*lines, "", _classes(calls, labels), "", _confusion(calls, labels)])


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is nothing to measure."""
    return "-" if value is None else f"{value:.3f}"


def span(interval: Sequence[float] | None, form: str = ".3f") -> str:
    """``0.538 to 0.585``."""
    return f"{'-':14}" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
