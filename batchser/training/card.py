"""The model card and the table of scores: what `batchser evaluate` prints is what the card says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchser.bundle import Bundle
from batchser.training.corpora import corpus_of


def render_scores(scores: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Write a bundle's scores as text; each names its protocol."""
    parts = []
    if "clips" in scores:
        parts.append(_render_clips(scores["clips"], labels))
    if "calls" in scores:
        parts.append(_render_calls(scores["calls"]))
    return "\n\n".join(parts)


def _render_clips(clips: Mapping[str, Any], labels: Sequence[str]) -> str:
    folds = clips["uar_by_fold"]
    lines = [
        f"Clips, speaker-independent: {len(folds)} folds, {clips['clips']} clips of {clips['speakers']} speakers, each "
        "scored by the fold model",
        "that never heard its speaker; untrimmed, 300-3400 Hz, mu-law at 8 kHz, through the job itself.",
        "95 % intervals are bootstrapped over speakers.",
        "",
        f"  {'':20}{'score':>8}   95 % interval",
    ]
    for key, name in (("uar", "UAR"), ("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        low, high = clips["intervals"][key]
        lines.append(f"  {name:20}{clips[key]:8.3f}   {low:.3f} to {high:.3f}")
    lines += [
        f"  {'UAR by fold':20}   " + "  ".join(f"{fold}: {uar:.3f}" for fold, uar in folds.items()),
        f"  {'calibration error':20}{clips['calibration_error']:8.3f}   (15 bins of equal mass)",
        f"  {'abstaining':20}{clips['kept_share']:8.3f}   of clips kept, {clips['kept_accuracy']:.3f} of them right",
        f"  {'not heard':20}{clips['not_heard']:8d}   clips in which the gate found no speech: counted as wrong",
        "",
        "  true \\ said" + "".join(f"{label[:8]:>10}" for label in labels) + "      none    recall  precision",
    ]
    for label, row in zip(labels, clips["confusion"], strict=True):
        counts = "".join(f"{count:10d}" for count in row)
        lines.append(f"  {label:11}{counts}{clips['recall'][label]:10.3f}{clips['precision'][label]:11.3f}")
    return "\n".join(lines)


def _render_calls(calls: Mapping[str, Any]) -> str:
    lines = [
        f"Windows of {calls['calls']} composed calls, of speakers and music that neither network heard in training.",
        "A window counts when its truth is plain: half of it or more one kind and nothing else in it.",
        "",
        "  true kind      windows   passed as speech   same kind",
    ]
    for kind, row in calls["gate"].items():
        lines.append(
            f"  {kind:12}{row['windows']:10d}{row['passed_as_speech']:19.3f}{row['same_kind']:12.3f}"  # a share each
        )
    if "uar" in calls:
        lines += [
            "",
            f"  customer's windows that passed: {calls['emotion_windows']}; UAR over the emotions {calls['uar']:.3f}, "
            f"negative against not {calls['negative_uar']:.3f}",
        ]
    return "\n".join(lines)


def render_card(bundle: Bundle) -> str:
    """Write the model card (README.md of the bundle) in Markdown."""
    data = "\n".join(
        f"- {corpus['name']}: {corpus['licence']}"
        f" ({'commercial use allowed' if corpus['commercial_use'] else 'non-commercial use only'})"
        for corpus in bundle.data
    )
    training = bundle.training
    notes = "".join(f"{corpus['name']}: {corpus_of(corpus['name']).note}\n" for corpus in bundle.data)
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    return f"""# {bundle.name}

Emotion of speech on telephone lines, per window of {bundle.features.window_ms / 1000:g} seconds, one of
{", ".join(bundle.labels)}. Negative are {", ".join(bundle.negative_labels)}.

**Licence of the data behind it: {bundle.licence}.**

{data}

The gate was also taught with music (GPL / CC BY-SA), noises (MIT) and generated sounds; no audio is in this folder.

## How it was made

`batchser train --recipe {training["recipe"]}`, seed {training["seed"]}; {versions}, Python {training["python"]}.
Network: `{bundle.network.name}` {dict(bundle.network.options)} on {bundle.features.num_mels} log-mel bands at
{bundle.features.rate_hz} Hz, each band's mean over the window taken out. Training windows are cut anywhere, with
neighbouring turns, speed copies, band-pass, line noise, lost packets, level and codec (mu-law, A-law, PCM, GSM 6.10).
Probabilities are calibrated by temperature ({bundle.temperature:.2f}) on speakers not trained on; below
{bundle.abstain_threshold:.3f} the model abstains. The threshold was chosen on the same held-out predictions that are
scored here, so that eight in ten are kept.

`folds.npz` has the fold models behind these scores. The shipped weights were trained on all folds, a few speakers kept
for early stopping: they cannot be measured on this corpus, the fold models stand for them. All share one scaler
({bundle.features.num_features} deviations over all folds). The gate was taught without the speakers of fold
{training["gate_held_out_fold"]} and {len(training["gate_held_out_music"])} excerpts of music (named in bundle.json); on
clips of the other folds it has heard the speakers. The tones of composed calls, and a third of their music, are made by
code of the kind that also made training sounds: expect more errors on tones and tunes of your own exchange.

## What it is worth

`batchser evaluate --model {bundle.name} --data CORPORA --calls CALLS` prints this again, from the corpora and a folder
of composed calls:

```
{render_scores(bundle.scores, bundle.labels)}
```

{notes}
## What it is not for

- Not for employees: inferring their emotions at work is prohibited in the EU (AI Act, Art. 5(1)(f)).
- Not for decisions about a single person, and not as a lie detector, a diagnosis or a measure of character.
- Real callers, other languages, children and old voices are not in the data named above; expect less than the scores
  above, and measure it on your own labelled calls first.
- It names how a voice sounds, not what a person feels.
"""
