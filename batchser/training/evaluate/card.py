"""The model card: README.md of a bundle, in Markdown. Its tables are those that `batchser evaluate` prints."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from batchser.bundle import Bundle
from batchser.training.corpora import corpus_of
from batchser.training.evaluate.held_out import CLEAN_LINE, line_of, windows_are_clips
from batchser.training.evaluate.report import render_scores, sent_down, span
from batchser.training.recipe import read_recipe


@dataclass(frozen=True, slots=True)
class Reference:
    """What others reach on a corpus: the score as published, in per cent, who, and under which protocol."""

    corpus: str
    score: str
    who: str
    protocol: str


_EMOBOX: Final = "EmoBox; frozen features of a large network"
#: Published scores to read ours beside, by corpus. A number says little without its protocol.
REFERENCES: Final = (
    Reference("CREMA-D", "40.9 accuracy", "human listeners, voice only (Cao et al. 2014)", "the emotion meant"),
    Reference("CREMA-D", "62.0 UAR", f"wav2vec2-base ({_EMOBOX})", "clean, 16 kHz, all speakers in train and test"),
    Reference("CREMA-D", "74.5 UAR", "WavLM-large (EmoBox)", "clean, 16 kHz, all speakers in train and test"),
    Reference("CREMA-D", "76.8 UAR", "Whisper-large-v3 (EmoBox)", "clean, 16 kHz, all speakers in train and test"),
    Reference("RAVDESS", "62.3 ± 1.2 UAR", "two LSTMs with attention (arXiv 2606.03359)", "clean, 5 speaker folds"),
    Reference("RAVDESS", "57.5–58.3 UAR", "plain LSTM (arXiv 2606.03359)", "clean, 5 speaker folds"),
    Reference("RAVDESS", "54.3 UAR", f"wav2vec2-base ({_EMOBOX})", "clean, 16 kHz, speaker-independent"),
    Reference("RAVDESS", "72.0 UAR", "WavLM-large (EmoBox)", "clean, 16 kHz, speaker-independent"),
    Reference("RAVDESS", "75.3 UAR", "Whisper-large-v3 (EmoBox)", "clean, 16 kHz, speaker-independent"),
    Reference("RAVDESS", "57–94 accuracy", "papers with dual LSTMs and CNN-LSTMs", "random splits: speakers leak"),
)
_OF_ANY_CORPUS: Final = (
    Reference("telephone", "about −7 points", "82 to 8 kHz and mu-law, EMO-DB (Frontiers, fcomp.2020.00014)",
              "not trained on telephone lines"),
    Reference("real calls", "45.6 UAR", "emergency calls (CEMO), 4 classes", "cross-domain"),
)  # fmt: skip

#: Tables of a recipe whose keys are a network's options: those it does not say have their defaults.
_FREE_KEYS: Final = ("network.", "gate_network.")
#: Tables that are said as a whole: what they do not name is not there.
_WHOLE_TABLES: Final = ("codecs", "corpus_weights", "sound_licences")


def render_card(bundle: Bundle) -> str:
    """Write the model card of a bundle whose scores are known."""
    return "\n".join([
        _head(bundle), _making(bundle), _worth(bundle), _references(bundle), _limits(bundle), _again(bundle),
    ])  # fmt: skip


def _head(bundle: Bundle) -> str:
    data = "\n".join(
        _wrapped(
            f"- {corpus['name']}: {corpus['licence']}"
            f" ({'commercial use allowed' if corpus['commercial_use'] else 'non-commercial use only'})."
            f" {_sentence(corpus_of(corpus['name']).note)}",
            "  ",
        )
        for corpus in bundle.data
    )
    where = "" if line_of(bundle) == CLEAN_LINE else " on telephone lines"
    return f"""# {bundle.name}

Emotion of speech{where}, per window of {bundle.features.window_ms / 1000:g} seconds, one of
{", ".join(bundle.labels)}. Negative are {", ".join(bundle.negative_labels)}.

**Licence of the data behind it: {bundle.licence}.**

{data}
{_gate_sounds(bundle.training.get("gate_sounds", {}))}"""


def _gate_sounds(sounds: Mapping[str, Any]) -> str:
    """Say which sounds lay behind voices and taught the gate, as the run noted them: {what: how many, whose}."""
    if not sounds:
        return ""
    named = ", ".join(f"{name} ({about})" for name, about in sounds.items())
    told = _wrapped(f"Behind voices, and for the gate: {named}, and generated sounds; no audio is in this folder.")
    return f"\n{told}\n"


def _making(bundle: Bundle) -> str:
    training = bundle.training
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    held_out = len(training.get("gate_held_out_music", ()))
    start = training.get("start_from")
    began = f" Training began with the networks of {start['name']} ({start['sha256'][:12]})." if start else ""
    recipe = training.get("whole_recipe", {})
    count = len(recipe.get("teacher_networks", ()))
    others = "another network" if count == 1 else f"{count} other networks"
    taught = (
        f" It was distilled: {100 * recipe['teacher_share']:.0f} % of each target is what {others}, fitted before it "
        "on the same clips, said of the window."
        if count
        else ""
    )
    music = f" and {held_out} excerpts of music (named in bundle.json)" if held_out else ""
    fold = training["gate_held_out_fold"]
    unheard = "the clips tested on" if fold is None else f"the speakers of fold {fold}"
    network = f"`{bundle.network.name}` with " + ", ".join(f"{k} {v}" for k, v in bundle.network.options.items())
    features = bundle.features
    step_ms = 1000 * features.hop_samples / features.rate_hz
    offsets = " and an offset for each label" if recipe.get("fit", {}).get("label_offsets", True) else ""
    of = f"{', '.join(features.names)} at {features.rate_hz} Hz ({features.num_features} values every {step_ms:g} ms)"
    shipped = (
        "The shipped weights are those of the first of them."
        if recipe.get("ship") == "split"
        else "The shipped weights were trained on all splits' clips, a few speakers kept for early stopping: they "
        "cannot be measured on these corpora, the split models stand for them."
    )
    paragraphs = (
        f"""Recipe `{training["recipe"]}`, seed {training["seed"]}; {versions}, Python {training["python"]}.{began}
        Emotion network: {network}; on {of}; {training["window_mflop"]:g} MFLOP a window.{taught} {_windows(bundle)}
        Probabilities are calibrated by a temperature ({bundle.temperature:.2f}){offsets} on clips not trained on; below
        a confidence of {bundle.abstain_threshold:.3f} the model abstains. That threshold was chosen on the same
        held-out predictions that are scored here.""",
        f"""The files `split-….npz` have the models behind these scores, one for each split of the protocol. {shipped}
        The gate was taught without {unheard}{music}; it
        has heard the speakers of all other clips.""",
    )
    return "\n\n".join(["## How it was made", *(_wrapped(text) for text in paragraphs)]) + "\n"


def _windows(bundle: Bundle) -> str:
    """Say how training windows were cut."""
    if windows_are_clips(bundle):
        windows = bundle.training["whole_recipe"]["windows"]
        return (
            f"Training windows are clips from {windows['offset_s']:g} s on, cut or padded to "
            f"{bundle.features.window_ms / 1000:g} s, {windows['copies']} of each ({', '.join(windows['variants'])}); "
            "clips are tested so cut too."
        )
    return (
        "Training windows are cut as the job cuts them: at any moment of a turn, with what lies beside it, on a "
        "simulated telephone line."
    )


def _worth(bundle: Bundle) -> str:
    return f"""## What it is worth

`batchser evaluate --model {bundle.name} --data CORPORA --calls CALLS` measures this again, from the corpora and folders
of composed calls:

```
{render_scores(bundle.scores, bundle.labels)}
```

The tones of composed calls, and a third of their music, are made by code of the kind that also made training sounds:
expect more errors on tones and tunes of your own exchange. Scores by sex and age are of actors whose sex and age their
corpus states; a gap between groups there is a gap to expect in calls.
"""


def _references(bundle: Bundle) -> str:
    """The table of others' scores on the bundle's corpora, beside the bundle's own on them."""
    clips = bundle.scores["clips"]
    rows = ["| corpus | score, % | whose | protocol |", "|---|---|---|---|"]
    own_protocol = f"{bundle.scores['protocol']}, {bundle.features.rate_hz} Hz, {sent_down(line_of(bundle))}"
    for name, scores in clips["by_corpus"].items():
        known = [100 * value for value in scores["intervals"]["uar"] or ()]
        own = f"**{100 * scores['uar']:.1f} UAR** ({span(known or None, '.1f').strip()})"
        own += f", {100 * scores['accuracy']:.1f} accuracy"
        rows.append(f"| {name} | {own} | this model, {scores['labels']} labels | {own_protocol} |")
        rows += [_row(reference) for reference in REFERENCES if reference.corpus == name]
    rows += [_row(reference) for reference in _OF_ANY_CORPUS]
    frankly = "As published, each under its own protocol: only equal protocols compare."
    return "\n".join(["## Beside others", "", frankly, "", *rows, ""])


def _row(reference: Reference) -> str:
    return f"| {reference.corpus} | {reference.score} | {reference.who} | {reference.protocol} |"


def _limits(bundle: Bundle) -> str:
    commercial = (
        ""
        if all(corpus["commercial_use"] for corpus in bundle.data)
        else "- Not for commercial use: the licences of the data above do not allow it.\n"
    )
    return f"""## What it is not for

{commercial}- Not for employees: inferring their emotions at work is prohibited in the EU (AI Act, Art. 5(1)(f)).
- Not for decisions about a single person, and not as a lie detector, a diagnosis or a measure of character.
- Real callers, other languages, children and old voices are not in the data named above, or hardly; expect less than
  the scores above, and measure it on your own labelled calls first.
- It names how a voice sounds, not what a person feels.
"""


def _again(bundle: Bundle) -> str:
    recipe = bundle.training["recipe"]
    carried = (resources.files("batchser.training") / "recipes" / f"{recipe}.toml").is_file()
    whole = bundle.training.get("whole_recipe")
    differing = _changes(recipe, whole) if carried and whole else []
    changes = "".join("--set '" + change.replace("'", "'\\''") + "' " for change in differing)
    start = bundle.training.get("start_from")
    needs = (
        f"The bundle {start['name']}, with which it began, must be installed or in BATCHSER_MODELS." if start else ""
    )
    about = f"""CORPORA holds the folders of the corpora named above, as their owners lay them out, and `music/`,
        `noise/` and `rir/`. {needs} With labelled calls of your own, write a recipe that names their manifest (columns
        path, start_s, end_s, emotion, speaker) among its corpora; `start_from = "{bundle.name}"` lets it begin with
        this model."""
    return f"""## Train it again

    batchser train --recipe {recipe if carried else f"{recipe}.toml"} {changes}--data CORPORA --out DIR

{_wrapped(about)}
"""


def _changes(recipe: str, whole: Mapping[str, Any]) -> list[str]:
    """What of a run's recipe was not as the package carries it, as words for ``--set``."""
    own = json.loads(json.dumps(dataclasses.asdict(read_recipe(recipe))))
    return list(_differences(_as_written(whole), _as_written(own)))


def _as_written(value: Any) -> Any:
    """Networks as a recipe writes them, with the name among the options, at any depth."""
    if isinstance(value, list):
        return [_as_written(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"name", "options"}:
        return {"name": value["name"], **value["options"]}
    return {key: _as_written(each) for key, each in value.items()}


def _differences(values: Mapping[str, Any], own: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """Keys of ``values`` that ``own`` has with another value, as ``table.key=value``; those that it lacks are gone."""
    for key, value in values.items():
        if key not in own and table not in _FREE_KEYS:
            continue
        if isinstance(value, dict) and isinstance(own.get(key), dict) and key not in _WHOLE_TABLES:
            yield from _differences(value, own[key], f"{table}{key}.")
        elif value != own.get(key):
            yield f"{table}{key}={_toml(value)}"


def _toml(value: Any) -> str:
    """Write a value of plain types as TOML, in one line."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items() if each is not None)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def _wrapped(text: str, indent: str = "") -> str:
    """Fill lines of 120; long words (names of networks, versions) stay whole."""
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
