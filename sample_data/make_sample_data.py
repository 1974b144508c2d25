"""Make the sample calls: two-party telephone calls, spoken by espeak-ng and mixed by code.

Nothing here was ever a real call: the dialogue is invented, the voices are synthetic, and ringing, keypad tones, hold
music and line noise are computed. The files made are committed, so that nobody needs espeak-ng to use them. The same
seed and the same espeak-ng give the same bytes.

    python sample_data/make_sample_data.py
"""

import argparse
import csv
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from scipy.signal import butter, lfilter, sosfilt

HERE = Path(__file__).resolve().parent
RATE_HZ = 8000
BAND_HZ = (300.0, 3400.0)
LINE_NOISE_DBFS = -60.0
MUSIC_DBFS = -24.0
DTMF_HZ = {
    key: (low_hz, high_hz)
    for low_hz, row in zip((697, 770, 852, 941), ("123A", "456B", "789C", "*0#D"), strict=True)
    for high_hz, key in zip((1209, 1336, 1477, 1633), row, strict=True)
}


@dataclass(frozen=True)
class Style:
    """How a sentence is said: emotion by speed, pitch, melody, level and vocal effort."""

    speed: float  # times the voice's own words a minute
    pitch: int  # added to the voice's own pitch, of espeak-ng's 0 to 99
    melody: str  # SSML prosody range
    level_dbfs: float  # RMS while speaking
    effort: float  # 0 to 1: a raised voice has more energy in its upper band


STYLES = {
    "calm": Style(1.0, 0, "medium", -25.0, 0.0),
    "warm": Style(1.04, 8, "high", -24.0, 0.0),
    "weary": Style(0.84, -12, "low", -26.0, 0.0),
    "tense": Style(1.12, 10, "high", -23.0, 0.3),
    "angry": Style(1.26, 26, "x-high", -21.0, 0.7),
    "furious": Style(1.36, 38, "x-high", -20.0, 1.0),
}


@dataclass(frozen=True)
class Voice:
    """One party: an espeak-ng voice with its own speed and pitch."""

    name: str
    words_per_minute: int
    pitch: int


@dataclass(frozen=True)
class Say:
    """One turn. A negative gap begins before the turn before has ended: overtalk."""

    party: str
    style: str
    text: str
    gap_s: float = 0.35


@dataclass(frozen=True)
class Sound:
    """Something that is no speech, on one party's line."""

    kind: str  # "ring", "music", "keys" or "silence"
    party: str = "customer"
    length_s: float = 0.0
    keys: str = ""


@dataclass(frozen=True)
class Call:
    """One recording: who sits on which channel, and what happens."""

    path: str
    channels: tuple[str, ...]  # one party a channel; ("mixed",) for a mono recording of both
    voices: dict[str, Voice]
    events: tuple[Say | Sound, ...]


BILLING = Call(
    "calls/2026-11-20/billing-0001.wav",
    ("agent", "customer"),
    {"agent": Voice("en-us+f3", 176, 48), "customer": Voice("en-gb+m3", 172, 40)},
    (
        Sound("ring", length_s=7.2),
        Say("agent", "warm", "Thank you for calling the billing desk. How can I help you today?"),
        Say("customer", "calm", "Good morning. I have a question about my last invoice. It looks higher than usual."),
        Say("agent", "calm", "I can look into that. Please enter your two security digits on the keypad."),
        Sound("keys", keys="47"),
        Say("agent", "warm", "Thank you. I see two charges for the same month."),
        Say("customer", "tense", "Yes, two. I called about that last week, and somebody told me it was settled."),
        Say("agent", "calm", "I am sorry about that. May I put you on hold while I ask my colleague?"),
        Say("customer", "tense", "Again? Fine. But please be quick."),
        Sound("music", length_s=13.0),
        Say("agent", "calm", "Thank you for waiting. The refund was never booked, so the charge still stands."),
        Say("customer", "angry", "Never booked? I was promised that money! I have called you three times now!", -0.5),
        Say("agent", "calm", "I do understand, but the system shows that"),
        Say("customer", "furious", "I do not care what the system shows! You took my money twice!", -1.3),
        Say("customer", "furious", "This is ridiculous! I want it back today, or I will cancel everything!", 0.2),
        Say("agent", "calm", "I am booking the refund now. You will have it within two working days."),
        Say("customer", "angry", "Two days. Every time it is two days! I want that in writing."),
        Say("agent", "calm", "The confirmation is on its way. Again, I am very sorry."),
        Say("customer", "tense", "We will see. Goodbye.", 0.2),
        Sound("silence", length_s=1.2),
    ),
)

SUPPORT = Call(
    "calls/2026-11-20/support-0002.wav",
    ("customer", "agent"),
    {"agent": Voice("en-gb-scotland+m7", 170, 45), "customer": Voice("en-us+f2", 158, 55)},
    (
        Sound("silence", length_s=1.0),
        Say("agent", "warm", "Technical support, good afternoon. What can I do for you?"),
        Say("customer", "calm", "Hello. My router shows an orange light since this morning, and I have no connection."),
        Say("agent", "calm", "Let us have a look. Could you switch it off and on again, please?"),
        Say("customer", "calm", "Of course. One moment, it is in the other room."),
        Sound("silence", length_s=6.5),
        Say("customer", "calm", "So, I am back. It is starting now. The light is blinking."),
        Say("agent", "calm", "Good. That takes about a minute. Which operating system do you use?"),
        Say("customer", "warm", "Oh, I only use a tablet, mostly for reading the news."),
        Say("agent", "calm", "Then please press one when the light turns green."),
        Sound("silence", length_s=3.5),
        Sound("keys", keys="1"),
        Say("customer", "warm", "There it is. Green. And the page is loading. Wonderful!"),
        Say("agent", "warm", "Great. Is there anything else?", -0.3),
        Say("customer", "warm", "No, that was all. Thank you so much for your help."),
        Say("agent", "warm", "You are welcome. Have a nice day."),
        Sound("silence", length_s=1.0),
    ),
)

SALES = Call(
    "calls/2026-11-20/sales-0003.mp3",
    ("mixed",),
    {"agent": Voice("en-us+m1", 178, 52), "customer": Voice("en-gb-x-rp+f4", 164, 45)},
    (
        Sound("ring", length_s=6.4),
        Say("customer", "calm", "Hello?"),
        Say("agent", "warm", "Good evening, this is the sales team. You asked us to call about the family plan."),
        Say("customer", "calm", "Oh yes, that is right. I wanted to know what it costs."),
        Say("agent", "warm", "It is thirty a month for four lines, and the first month is free."),
        Say("customer", "weary", "Hmm. My husband had the old plan, and it always ended up costing more."),
        Say("agent", "calm", "I hear that a lot. This one has a fixed price, with no extra charges at all."),
        Say("customer", "weary", "I am not sure. It has been a difficult year, and we have to watch our spending."),
        Say("agent", "calm", "I understand. There is no hurry. Shall I send you the offer by post?"),
        Say("customer", "calm", "Yes, please. And can I cancel it if it does not work for us?"),
        Say("agent", "warm", "At any time, with one month of notice."),
        Say("customer", "warm", "Then that sounds good. Thank you for explaining it.", -0.2),
        Say("agent", "warm", "My pleasure. Good night."),
        Sound("silence", length_s=0.8),
    ),
)

BROKEN_PATH = "calls/2026-11-20/support-0004.wav"
MANIFEST = (
    ("path", "call_id", "roles", "started_at", "queue", "agent_id", "handle_time_s"),
    (BILLING.path, "billing-0001", "agent,customer", "2026-11-20T09:14:05+01:00", "billing", "A17", 131),
    (SUPPORT.path, "support-0002", "customer,agent", "2026-11-20T13:02:48+01:00", "support", "A04", 94),
    (SALES.path, "sales-0003", "mixed", "2026-11-20T17:40:11Z", "sales", "A22", 105),
    (BROKEN_PATH, "support-0004", "agent,customer", "2026-11-20T18:21:30", "support", "A04", 12),
)


def gain(dbfs: float) -> float:
    """Amplitude of a level in dBFS."""
    return float(10.0 ** (dbfs / 20.0))


def at_level(signal: np.ndarray, level_dbfs: float) -> np.ndarray:
    """Scale a signal, float64 (samples,), so that its active 20 ms frames have this RMS level."""
    frame_samples = RATE_HZ // 50
    num_frames = len(signal) // frame_samples
    power = np.square(signal[: num_frames * frame_samples]).reshape(num_frames, frame_samples).mean(axis=1)
    active = power[power > power.max() * 1e-3]
    return signal * (gain(level_dbfs) / np.sqrt(active.mean()))


def spoken(voice: Voice, say: Say) -> np.ndarray:
    """Say one turn with espeak-ng: float64 (samples,) at RATE_HZ, without the silence around it."""
    style = STYLES[say.style]
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "turn.wav"
        words_per_minute = round(voice.words_per_minute * style.speed)
        command = ["espeak-ng", "-m", "-v", voice.name, "-s", str(words_per_minute)]
        command += ["-p", str(int(np.clip(voice.pitch + style.pitch, 0, 99))), "-w", str(wav)]
        ssml = f"<speak><prosody range='{style.melody}'>{say.text}</prosody></speak>"
        subprocess.run([*command, ssml], check=True)
        signal, rate_hz = sf.read(wav)
    signal = soxr.resample(signal, rate_hz, RATE_HZ)
    loud = np.flatnonzero(np.abs(signal) > 0.01 * np.abs(signal).max())
    signal = signal[loud[0] : loud[-1] + 1]
    # A raised voice: less spectral tilt (first difference), then a little compression.
    signal = lfilter([1.0, -0.7 * style.effort], [1.0], signal)
    peak = np.abs(signal).max()
    drive = 1.0 + 2.0 * style.effort
    return at_level(np.tanh(drive * signal / peak) / drive, style.level_dbfs)


def ringing(length_s: float) -> np.ndarray:
    """Ringback as North American exchanges send it: 440 + 480 Hz, two seconds on, four off."""
    time_s = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    pair = np.sin(2 * np.pi * 440.0 * time_s) + np.sin(2 * np.pi * 480.0 * time_s)
    return gain(-24.0) * pair * ((time_s % 6.0) < 2.0)


def keypad(keys: str) -> np.ndarray:
    """Keypad tones (DTMF): 180 ms a key, 140 ms between."""
    time_s = np.arange(round(0.18 * RATE_HZ)) / RATE_HZ
    pause = np.zeros(round(0.14 * RATE_HZ))
    parts = []
    for key in keys:
        low_hz, high_hz = DTMF_HZ[key]
        parts += [gain(-22.0) * (np.sin(2 * np.pi * low_hz * time_s) + np.sin(2 * np.pi * high_hz * time_s)), pause]
    return np.concatenate(parts)


def note(midi: float, length_s: float, decay_s: float) -> np.ndarray:
    """One plucked note with four overtones, fading in over 10 ms."""
    time_s = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    hz = 440.0 * 2.0 ** ((midi - 69.0) / 12.0)
    tone = sum(np.sin(2 * np.pi * hz * k * time_s) / k**1.5 for k in range(1, 6) if hz * k < RATE_HZ / 2)
    return tone * np.exp(-time_s / decay_s) * np.minimum(time_s / 0.01, 1.0)


def hold_music(length_s: float, rng: np.random.Generator) -> np.ndarray:
    """Chords with a wandering melody on top, 100 beats a minute, fading in and out."""
    beat_s = 0.6
    out = np.zeros(round((length_s + 4 * beat_s) * RATE_HZ))

    def add(start_s: float, signal: np.ndarray) -> None:
        start = round(start_s * RATE_HZ)
        out[start : start + len(signal)] += signal[: len(out) - start]

    chords = ((60, 64, 67, 71), (57, 60, 64, 67), (62, 65, 69, 72), (55, 59, 62, 65))
    for beat in range(int(length_s / beat_s) + 1):
        chord = chords[(beat // 4) % 4]
        if beat % 4 == 0:
            for midi in chord:
                add(beat * beat_s, 0.5 * note(midi, 4 * beat_s, 1.6))
        add(beat * beat_s, 0.6 * note(chord[0] - 12 + 7 * (beat % 2), beat_s, 0.4))
        for half in range(2):
            if rng.random() < 0.75:
                add((beat + half / 2) * beat_s, 0.8 * note(int(rng.choice(chord)) + 12, beat_s, 0.3))
    out = out[: round(length_s * RATE_HZ)]
    fade = np.minimum(np.arange(len(out)) / (0.3 * RATE_HZ), 1.0)
    return at_level(out, MUSIC_DBFS) * fade * fade[::-1]


def rendered(call: Call, event: Say | Sound, rng: np.random.Generator) -> np.ndarray:
    """Turn one event into sound: float64 (samples,)."""
    if isinstance(event, Say):
        return spoken(call.voices[event.party], event)
    makers: dict[str, Callable[[], np.ndarray]] = {
        "ring": lambda: ringing(event.length_s),
        "music": lambda: hold_music(event.length_s, rng),
        "keys": lambda: keypad(event.keys),
        "silence": lambda: np.zeros(round(event.length_s * RATE_HZ)),
    }
    return makers[event.kind]()


def telephone_line(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Band-pass to the telephone's band, with hiss and a trace of mains hum's overtones."""
    time_s = np.arange(len(signal)) / RATE_HZ
    hum = sum(np.sin(2 * np.pi * 50.0 * k * time_s + rng.uniform(0, 6.28)) for k in (7, 9, 11))
    noisy = signal + gain(LINE_NOISE_DBFS) * rng.standard_normal(len(signal)) + gain(-78.0) * hum
    band = butter(4, BAND_HZ, btype="bandpass", fs=RATE_HZ, output="sos")
    return np.clip(sosfilt(band, noisy), -0.98, 0.98)


def composed(call: Call, rng: np.random.Generator) -> np.ndarray:
    """Lay the events of a call on its lines one after the other: float64 (samples, channels)."""
    pieces: list[tuple[int, str, np.ndarray]] = []
    end = 0
    for event in call.events:
        gap_s = event.gap_s if isinstance(event, Say) else 0.3
        start = max(0, end + round(gap_s * RATE_HZ))
        signal = rendered(call, event, rng)
        pieces.append((start, event.party, signal))
        end = max(end, start + len(signal))
    lines = {party: np.zeros(end) for party in call.voices}
    for start, party, signal in pieces:
        lines[party][start : start + len(signal)] += signal
    lines = {party: telephone_line(lines[party], rng) for party in sorted(lines)}
    if call.channels == ("mixed",):
        return np.clip(sum(lines.values()), -0.98, 0.98)[:, np.newaxis]
    return np.stack([lines[party] for party in call.channels], axis=1)


def write_call(call: Call, out: Path, rng: np.random.Generator) -> None:
    """Write one call as its suffix says: mu-law WAV, or MP3 at 24 kbit/s."""
    path = out / call.path
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = composed(call, rng)
    if path.suffix == ".mp3":
        sf.write(path, samples, RATE_HZ, format="MP3", bitrate_mode="CONSTANT", compression_level=0.72)
    else:
        sf.write(path, samples, RATE_HZ, format="WAV", subtype="ULAW")


def write_broken(healthy: Path, path: Path, rng: np.random.Generator) -> None:
    """Write the start of a healthy recording whose first 2 kB, the header among them, were overwritten."""
    data = healthy.read_bytes()[:8192]
    path.write_bytes(rng.bytes(2048) + data[2048:])


def main() -> None:
    """Make every file of the sample data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261120, help="seed of noise and music (default: %(default)s)")
    arguments = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed; the voices come from it (Debian: apt-get install espeak-ng)")
    for number, call in enumerate((BILLING, SUPPORT, SALES)):
        write_call(call, arguments.out, np.random.default_rng([arguments.seed, number]))
    broken_rng = np.random.default_rng([arguments.seed, 3])
    write_broken(arguments.out / SUPPORT.path, arguments.out / BROKEN_PATH, broken_rng)
    with (arguments.out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(MANIFEST)
    for path in sorted((arguments.out / "calls").rglob("*.*")):
        print(f"{path.relative_to(arguments.out)}\t{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
