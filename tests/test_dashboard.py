"""The dashboard's pages without a browser: what they show, what they refuse, what they keep."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from conftest import Bundle, speechlike
from flask.testing import FlaskClient
from generated_results import write_results
from pages import HOSTILE, Page, assert_inert, assert_no_formulas
from scored_calls import score_calls, score_headerless

from batchser.cli import cli
from batchser.dashboard.app import make_app
from batchser.dashboard.labels import COLUMNS, open_labels
from batchser.dashboard.options import Options
from batchser.dashboard.serve import LOOPBACK, Address
from batchser.dashboard.uploads import _MOST_UPLOADS, Uploads
from batchser.errors import ConfigError
from batchser.settings import Headerless, LimitSettings, RunSettings, TrustSettings
from batchser.training.corpora.clips import read_clip
from batchser.training.corpora.manifest import read_manifest

ROOT = Path(__file__).parent.parent


def client_of(out: Path, bundle: Bundle, labels: Path, root: Path | None = None, **changes: object) -> FlaskClient:
    limits = LimitSettings(trust=TrustSettings(root=str(root))) if root else None
    options = Options(str(out), None, ZoneInfo("UTC"), (), limits, Headerless(), None, ("localhost",), 400_000)
    options = replace(options, **changes)
    uploads = Uploads(bundle, RunSettings(), options.headerless)
    app = make_app(options, uploads, open_labels(labels))
    app.extensions["uploads"] = uploads
    return app.test_client()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    return score_calls(tmp_path_factory.mktemp("scored"), tiny_bundle.folder)


@pytest.fixture
def client(scored: Path, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[FlaskClient]:
    client = client_of(scored, tiny_bundle, tmp_path / "labels.csv", scored.parent)
    yield client
    client.application.extensions["uploads"].close()


def page_of(client: FlaskClient, path: str, code: int = 200, **query: object) -> Page:
    answer = client.get(path, query_string=query or None)
    assert answer.status_code == code, answer.text
    return Page(answer.text)


def call_links(page: Page) -> list[str]:
    return [attrs["href"] for tag, attrs in page.elements if tag == "a" and (attrs["href"] or "").startswith("/call?")]


# ------------------------------------------------------------------------------------------------- many calls


@pytest.fixture(scope="module", params=["r.parquet", "grown"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> FlaskClient:
    folder = tmp_path_factory.mktemp("many")
    write_results(folder / request.param, 400, nights=40, faults=4)
    return client_of(folder / request.param, tiny_bundle, folder / "labels.csv")


def test_filters_leave_what_is_asked_for(many: FlaskClient) -> None:
    every = {"from": "2026-11-01"}
    assert "400 rows" in page_of(many, "/", **every).words
    assert "calls 4 " in page_of(many, "/", **every, status="unreadable").words
    one_day = page_of(many, "/", **{"from": "2026-11-05", "to": "2026-11-05"})
    assert "10 rows" in one_day.words
    queues = [page_of(many, "/", **every, **{"own:queue": queue}).words for queue in ("billing", "sales", "support")]
    assert sum(int(re.search(r"; (\d+) rows", words)[1]) for words in queues) == 400
    assert "20 rows" in page_of(many, "/", **every, where="call_id < 'call-000020'").words
    worst = page_of(many, "/", **every, reason="escalated")
    assert "escalated" in worst.words
    assert not re.search(r" 0 escalated", worst.words)
    assert "No call is left" in page_of(many, "/", **{"from": "2030-01-01"}).words


def test_a_dataset_shows_its_last_days_first(many: FlaskClient) -> None:
    rows = int(re.search(r"; (\d+) rows", page_of(many, "/").words)[1])
    grown = "of which the last 30" in page_of(many, "/").words
    assert rows == (300 if grown else 400)


def test_the_table_is_sorted_and_paged(many: FlaskClient) -> None:
    every = {"from": "2026-11-01"}
    first, second = (call_links(page_of(many, "/", **every, sort="call_id", page=number)) for number in (1, 2))
    assert len(first) >= 50
    assert "call_id=call-000000&" in first[-50]
    assert "call_id=call-000050&" in second[-50]
    down = call_links(page_of(many, "/", **every, sort="-call_id"))
    assert "call_id=call-000399" in down[-50]
    assert "page 8 of 8" in page_of(many, "/", **every, page=99).words


def test_a_mistake_leaves_the_form_as_it_was(many: FlaskClient) -> None:
    asked = {"from": "2026-11-05", "to": "", "own:queue": "sales", "where": "negativity >"}
    page = page_of(many, "/", 400, **asked)
    assert "condition 'negativity >': cannot be read" in page.words
    values = {attrs.get("name"): attrs.get("value") for tag, attrs in page.elements if tag == "input"}
    assert values["where"] == "negativity >"
    assert [attrs for tag, attrs in page.elements if tag == "option" and "selected" in attrs]
    page = page_of(many, "/moments", 400, emotion="sad", where="x")
    assert "there is no column 'x'" in page.words
    assert {attrs.get("value") for _, attrs in page.elements} >= {"x"}


def test_a_call_is_found_under_another_day(many: FlaskClient) -> None:
    page_of(many, "/call", call_id="call-000000", day="2020-01-01")


def test_calls_are_saved_as_csv(many: FlaskClient) -> None:
    answer = many.get("/calls.csv?from=2026-11-05&to=2026-11-05")
    assert answer.headers["Content-Disposition"] == "attachment; filename=calls.csv"
    assert len(answer.text.splitlines()) == 11


@pytest.mark.parametrize(
    ("path", "query", "code", "words"),
    [
        ("/", {"where": "quue == 'a'"}, 400, "did you mean queue"),
        ("/", {"from": "yesterday"}, 400, "received 'yesterday', expected a day"),
        ("/moments", {"where": "x >"}, 400, "where 'x >': cannot be read"),
        ("/", {"from": "2026-11-05", "to": "2026-11-04"}, 400, "expected the earlier day first"),
        ("/moments", {"emotion": "furious"}, 400, "the model knows"),
        ("/call", {"call_id": "none"}, 404, "There is no call 'none'"),
        ("/upload", {"upload": "gone"}, 404, "kept no longer"),
        ("/nowhere", {}, 404, "not found"),
        ("/assets/../app.py", {}, 404, "not found"),
    ],
)
def test_what_cannot_be_shown_is_told(many: FlaskClient, path: str, query: dict, code: int, words: str) -> None:
    assert words in page_of(many, path, code, **query).words


@pytest.mark.parametrize("options", [{"num_calls": 0}, {"num_calls": 5, "faults": 5}, {"num_calls": 1, "windows": 1}])
@pytest.mark.parametrize("name", ["r.parquet", "grown"])
def test_small_results(tmp_path: Path, tiny_bundle: Bundle, name: str, options: dict) -> None:
    write_results(tmp_path / name, **options)
    client = client_of(tmp_path / name, tiny_bundle, tmp_path / "labels.csv")
    for path in ("/", "/moments", "/labels", "/upload", "/calls.csv"):
        page_of(client, path)
    if options["num_calls"]:
        page_of(client, "/call", call_id="call-000000")


# ------------------------------------------------------------------------------------------------- one call


def test_a_call_is_seen_and_heard(client: FlaskClient, scored: Path) -> None:
    page = page_of(client, "/call", call_id="two")
    windows = [attrs for _, attrs in page.elements if attrs.get("class") == "hear"]
    assert [float(attrs["data-start"]) for attrs in windows] == [3, 6, 9, 15, 18]
    figure = client.get("/call/figure?call_id=two").json["figure"]
    assert {trace["type"] for trace in figure["data"]} == {"scatter", "heatmap", "bar"}
    assert sum(len(trace["x"]) for trace in figure["data"] if trace["type"] == "bar") == 5
    answer = client.get("/call/sound?call_id=two&start=6&end=9")
    assert answer.mimetype == "audio/wav"
    heard, rate_hz = soundfile.read(BytesIO(answer.data), dtype="int16", always_2d=True)
    whole, _ = soundfile.read(scored.parent / "audio" / "1.wav", dtype="int16", always_2d=True)
    wanted = whole[round(5.5 * rate_hz) : round(9.5 * rate_hz)]
    np.testing.assert_allclose(heard[300:-300, 0], wanted[300:-300, 1], atol=1)  # the customer's channel alone
    both = client.get("/call/sound?call_id=two&start=6&end=9&all")
    assert soundfile.read(BytesIO(both.data), always_2d=True)[0].shape == wanted.shape


def test_the_player_may_ask_for_a_part(client: FlaskClient) -> None:
    address = "/call/sound?call_id=two&start=6&end=9"
    whole = client.get(address).data
    part = client.get(address, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.data) == (206, whole[100:200])


def test_the_other_channel_is_seen_and_not_scored(client: FlaskClient) -> None:
    page = page_of(client, "/call", call_id="two", channel=0)
    assert not [attrs for _, attrs in page.elements if attrs.get("class") == "hear"]
    figure = client.get("/call/figure?call_id=two&channel=0").json["figure"]
    assert {trace["type"] for trace in figure["data"]} == {"scatter", "heatmap"}


def test_a_recording_that_could_not_be_read_says_so(client: FlaskClient) -> None:
    assert "unreadable: " in page_of(client, "/call", call_id="broken").words


@pytest.mark.parametrize("query", ["start=6", "start=9&end=6", "start=0&end=500", "start=-1&end=2", "start=a&end=b"])
def test_parts_that_are_none_are_refused(client: FlaskClient, query: str) -> None:
    assert client.get(f"/call/sound?call_id=two&{query}").status_code == 400


def test_originals_are_opened_below_the_root_alone(scored: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    for root, words, code in ((None, "--root DIR", 403), (tmp_path, "outside of --root", 404)):
        client = client_of(scored, tiny_bundle, tmp_path / "labels.csv", root)
        assert words in client.get("/call/figure?call_id=two").json["problem"]
        answer = client.get("/call/sound?call_id=two&start=6&end=9")
        assert (answer.status_code, words in answer.text) == (code, True)
        assert ("▶" in page_of(client, "/call", call_id="two").words) is (root is not None)


# ------------------------------------------------------------------------------------------------- uploads


def upload(client: FlaskClient, data: bytes, name: str, roles: str = "") -> tuple[int, str]:
    form = {"recording": (BytesIO(data), name), "channel_roles": roles}
    answer = client.post("/upload", data=form, content_type="multipart/form-data")
    return answer.status_code, answer.headers.get("Location", answer.text)


def sound(file_format: str, *channels: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, np.stack(channels, axis=1), 8000, format=file_format)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_recording_of_ones_own_is_scored(client: FlaskClient, file_format: str) -> None:
    code, address = upload(client, sound(file_format, speechlike(9, 1)), f"mine.{file_format.lower()}")
    assert code == 303
    page = page_of(client, address)
    assert "mine." in page.words
    assert "scored in" in page.words
    assert "Mean probabilities" in page.words
    assert not [attrs for _, attrs in page.elements if attrs.get("id") == "label-form"]
    query = address.partition("?")[2]
    assert client.get(f"/upload/figure?{query}").json["figure"]["data"]
    assert client.get(f"/upload/sound?{query}&start=0&end=3").mimetype == "audio/wav"


def test_who_speaks_can_be_said(client: FlaskClient) -> None:
    data = sound("WAV", speechlike(9, 1), speechlike(9, 2))
    unknown = page_of(client, upload(client, data, "stereo.wav")[1])
    assert "not_scored" in unknown.words
    stated = page_of(client, upload(client, data, "stereo.wav", "customer,agent")[1])
    assert len([attrs for _, attrs in stated.elements if attrs.get("class") == "hear"]) == 3
    (figure,) = [attrs for _, attrs in stated.elements if attrs.get("id") == "recording-figure"]
    assert figure["data-channel"] == "0"


def test_uploads_that_are_none(client: FlaskClient) -> None:
    page = page_of(client, upload(client, b"no audio at all", "<b>x</b>.wav")[1])
    assert "unreadable: " in page.words
    assert_inert(page)
    assert upload(client, b"", "")[0] == 400
    assert upload(client, sound("WAV", speechlike(3)), "a.wav", "boss")[0] == 400
    code, text = upload(client, b"0" * 450_000, "big.wav")
    assert (code, "A recording may have 0 MB at most (--max-upload)." in text) == (413, True)
    assert upload(client, sound("WAV", speechlike(3)), "../../etc/passwd")[0] == 303


def test_recordings_without_a_header_are_heard_as_stated(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = score_headerless(tmp_path, tiny_bundle.folder)
    raw = (tmp_path / "raw.ulaw").read_bytes()
    address = "/call/sound?call_id=raw&start=3&end=6"
    client = client_of(out, tiny_bundle, tmp_path / "l.csv", tmp_path)
    untold = client.application.extensions["uploads"]
    assert "say how it is encoded: --encoding" in client.get(address).text
    assert "say how it is encoded: --encoding" in client.get("/call/figure?call_id=raw").json["problem"]
    assert (
        "unreadable: the file starts with no known audio header"
        in page_of(client, upload(client, raw, "raw.ulaw")[1]).words
    )
    untold.close()
    client = client_of(out, tiny_bundle, tmp_path / "l.csv", tmp_path, headerless=Headerless("mulaw"))
    whole, _ = soundfile.read(
        tmp_path / "raw.ulaw", samplerate=8000, channels=1, format="RAW", subtype="ULAW", dtype="int16"
    )
    heard, rate_hz = soundfile.read(BytesIO(client.get(address).data), dtype="int16")
    assert rate_hz == 8000
    np.testing.assert_allclose(heard[300:-300], whole[20_000:52_000][300:-300], atol=1)
    assert "figure" in client.get("/call/figure?call_id=raw").json
    where = upload(client, raw, "raw.ulaw")[1]
    uploads = client.application.extensions["uploads"]
    (row,) = uploads.get(where.partition("upload=")[2]).calls
    assert (row["status"], row["duration_s"]) == ("ok", 12)
    assert "figure" in client.get(where.replace("/upload?", "/upload/figure?")).json
    assert client.get(where.replace("/upload?", "/upload/sound?") + "&start=3&end=6").mimetype == "audio/wav"
    uploads.close()
    # Training is told, too, how to read what was labelled.
    assert say(client, call_id="raw", channel=0) == 200
    (clip,), faults = read_manifest(tmp_path / "l.csv")
    assert (clip.encoding, clip.rate_hz, faults) == ("mulaw", 8000, [])
    samples = read_clip(clip, 8000)
    np.testing.assert_allclose(samples, whole[24_000:48_000] / 32768, atol=1e-3)


def test_uploads_are_forgotten(client: FlaskClient) -> None:
    uploads = client.application.extensions["uploads"]
    data = sound("WAV", speechlike(1))
    kept = [uploads.add(BytesIO(data), f"{k}.wav", None) for k in range(_MOST_UPLOADS + 2)]
    assert [one.path.exists() for one in kept] == [False] * 2 + [True] * _MOST_UPLOADS
    assert uploads.get(kept[0].token) is None
    uploads.close()
    assert not kept[-1].path.exists()


# ------------------------------------------------------------------------------------------------- labels


def say(client: FlaskClient, **changes: object) -> int:
    said = {"call_id": "two", "channel": 1, "start_s": 3, "end_s": 6, "emotion": "sad", "listener": "ann"}
    return client.post("/labels", json=said | changes).status_code


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_labels_are_a_manifest_to_train_with(scored: Path, tiny_bundle: Bundle, tmp_path: Path, name: str) -> None:
    client = client_of(scored, tiny_bundle, tmp_path / name, scored.parent)
    assert say(client) == 200
    assert say(client, emotion="angry", note="=SUM(A1)") == 200  # the last word on the same moment
    assert say(client, call_id="one", start_s=15, end_s=21, emotion="neutral") == 200
    clips, faults = read_manifest(tmp_path / name)
    assert faults == []
    found = [(clip.path.name, clip.emotion, clip.speaker, clip.channel, clip.start_s, clip.end_s) for clip in clips]
    assert found == [
        ("1.wav", "angry", "call:two", 1, 3.0, 6.0), ("0.wav", "neutral", "call:one", 1, 15.0, 18.0),
        ("0.wav", "neutral", "call:one", 1, 18.0, 21.0),  # a moment is its windows
    ]  # fmt: skip
    assert "angry" in page_of(client, "/call", call_id="two").words
    again = client_of(scored, tiny_bundle, tmp_path / name, scored.parent)
    assert "3 labels" in page_of(again, "/labels").words
    assert_no_formulas(again.get("/labels.csv").text)
    if name.endswith(".csv"):
        assert_no_formulas((tmp_path / name).read_text())


def test_the_callers_column_names_the_speaker(scored: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    client = client_of(scored, tiny_bundle, tmp_path / "l.csv", speaker_column="queue")
    assert say(client) == 200
    assert read_manifest(tmp_path / "l.csv")[0][0].speaker == "two"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"emotion": "furious"}, 400),
        ({"emotion": None}, 400),
        ({"call_id": "none"}, 404),
        ({"channel": 0}, 404),
        ({"start_s": 1}, 400),
        ({"end_s": 600}, 400),
        ({"start_s": "x"}, 400),
        ({"start_s": 6, "end_s": 3}, 400),
    ],
)
def test_labels_of_nothing_are_refused(client: FlaskClient, changes: dict, code: int) -> None:
    assert say(client, **changes) == code
    assert "0 labels" in page_of(client, "/labels").words


def test_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.parquet").write_text("nothing")
    for name, words in (
        ("l.txt", r"ends in \.csv or \.parquet"),
        ("no/l.csv", "there is no folder"),
        ("other.csv", "has no column path"),
        ("other.parquet", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_labels(tmp_path / name)
    assert tuple(COLUMNS[:3]) == ("path", "emotion", "speaker")


# ------------------------------------------------------------------------------------------------- guards


def test_hostile_names_are_inert(tmp_path: Path, tiny_bundle: Bundle) -> None:
    out = score_calls(tmp_path, tiny_bundle.folder, names=HOSTILE)
    client = client_of(out, tiny_bundle, tmp_path / "labels.csv", tmp_path)
    for path in ("/", "/moments"):
        page = page_of(client, path)
        assert_inert(page)
        assert all(name.strip() in page.text for name in HOSTILE)
    for name in HOSTILE:
        page = page_of(client, "/call", call_id=name)
        assert_inert(page)
        assert say(client, call_id=name, note=name, listener=name) == 200
    assert_inert(page_of(client, "/labels"))
    assert_inert(page_of(client, "/call", 404, call_id="<script>alert(9)</script>"))
    assert_inert(page_of(client, "/", 400, where=HOSTILE[0]))
    for path in ("/calls.csv", "/labels.csv"):
        assert_no_formulas(client.get(path).text)
    figure = json.dumps(client.get("/call/figure?" + urlencode({"call_id": HOSTILE[0]})).json)
    assert "<script" not in figure


def test_other_sites_are_refused(client: FlaskClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    for headers, code in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ):
        said = {"call_id": "two", "channel": 1, "start_s": 3, "end_s": 6, "emotion": "sad"}
        assert client.post("/labels", json=said, headers=headers).status_code == code
    headers = client.get("/").headers
    policy = headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1:8050", True), ("localhost:80", True), ("[::1]:80", True), ("0.0.0.0:80", False), ("host:1", False)],
)
def test_addresses(text: str, loopback: bool) -> None:
    assert Address.parsed(text).is_loopback is loopback
    for wrong in ("8050", ":8050", "host:", "host:x", "host:70000"):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            Address.parsed(wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "8050"], "expected HOST:PORT"),
        (["--model", "none"], "none"),
        (["--labels", "l.txt"], "expected a name that ends in .csv or .parquet"),
        (["--speaker-column", "caller"], "the manifest had no such column; there are: queue"),
        (["--root", "no/such"], "there is no folder"),
        (["--channel-roles", "boss"], "expected a comma-separated list"),
    ],
)
def test_wrong_usage_is_told_before_it_starts(scored: Path, options: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, ["dashboard", str(scored), *options])
    assert words in str(done.exception) + done.output


def test_it_is_served(scored: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("batchser"), "dashboard", scored, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            address = re.match(r"(http://127\.0\.0\.1:\d+/) shows ", line)[1]
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert "<h1>Calls</h1>" in answer.read().decode()
            with urllib.request.urlopen(f"{address}assets/plotly.js", timeout=30) as answer:
                assert len(answer.read()) > 1e6
        finally:
            process.terminate()
        started = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - started < 20


# ------------------------------------------------------------------------------------------------- what a review found


def test_all_days_stay_all_days(tmp_path: Path, tiny_bundle: Bundle) -> None:
    write_results(tmp_path / "grown", 600, nights=60)
    client = client_of(tmp_path / "grown", tiny_bundle, tmp_path / "labels.csv")
    page = page_of(client, "/", **{"from": "", "to": ""})
    assert "600 rows" in page.words
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    for start in ("/?", "/calls.csv?"):
        for link in [link for link in links if link.startswith(start)]:
            assert "from=" in link
    (csv_link,) = [link for link in links if link.startswith("/calls.csv?")]
    assert len(client.get(csv_link).text.splitlines()) == 601
    assert "/?from=" in links


def test_what_is_asked_for_is_shown_though_no_call_has_it(many: FlaskClient) -> None:
    page = page_of(many, "/", **{"own:queue": "gone"})
    assert "No call is left" in page.words
    assert re.search(r"queue all billing sales support gone", page.words)


def test_those_that_need_a_person_are_sorted_as_they_are_listed(many: FlaskClient) -> None:
    page = page_of(many, "/", **{"from": "", "sort": "-batchser:reasons"})
    links = [link.partition("&")[0] for link in call_links(page)]
    assert links[:5] == links[-50:-45]


def test_unusual_columns_and_days_do_no_harm(tmp_path: Path, tiny_bundle: Bundle) -> None:
    out = write_results(tmp_path / "r.parquet", 20)
    table = pq.read_table(out)
    end = table.schema.get_field_index("source_sha256")
    for name, values in {
        "tags": pa.array([["a"], None] * 10), "reasons": pa.array(["x"] * 20), "size": pa.array([float("inf")] * 20),
        "day": pa.array(["Mon"] * 20),
    }.items():  # fmt: skip
        table = table.add_column(end, name, values)
    pq.write_table(table, out)
    client = client_of(out, tiny_bundle, tmp_path / "labels.csv")
    page = page_of(client, "/", **{"from": "0001-01-01", "to": "9999-12-31", "sort": "tags"})
    assert "20 rows" in page.words
    assert re.search(r"reasons all x ", page.words)
    assert "Mon" in client.get("/calls.csv").text
    page_of(client, "/call", call_id="call-000000")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8050", "localhost:1", "127.0.0.1:8050", "[::1]:8050"])
def test_it_answers_to_its_names(scored: Path, tiny_bundle: Bundle, tmp_path: Path, host: str) -> None:
    client = client_of(scored, tiny_bundle, tmp_path / "labels.csv", hosts=LOOPBACK)
    assert client.get("/labels", headers={"Host": host}).status_code == 200
    for other in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8050", "[::2]:80"):
        assert client.get("/labels", headers={"Host": other}).status_code == 400


@pytest.mark.parametrize("body", ["[]", '"x"', "null", "{}", '{"emotion": "sad", "channel": 1e400}', "no json"])
def test_labels_that_are_no_objects_are_refused(client: FlaskClient, body: str) -> None:
    answer = client.post("/labels", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert say(client, channel=1e30) == 404


def test_dashboards_do_not_lose_each_others_labels(scored: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    one, other = (client_of(scored, tiny_bundle, tmp_path / "labels.csv") for _ in range(2))
    assert say(one) == 200
    assert say(other, call_id="one") == 200
    assert say(one, start_s=6, end_s=9) == 200
    assert len(read_manifest(tmp_path / "labels.csv")[0]) == 3
    with ThreadPoolExecutor(4) as pool:
        starts = [(name, start) for name in ("one", "two", "three") for start in (3, 6, 9, 15, 18)]
        clients = [client_of(scored, tiny_bundle, tmp_path / "labels.csv") for _ in starts]
        answers = pool.map(
            lambda work: say(work[0], call_id=work[1][0], start_s=work[1][1], end_s=work[1][1] + 3),
            zip(clients, starts, strict=True),
        )
        assert set(answers) == {200}
    assert len(read_manifest(tmp_path / "labels.csv")[0]) == 15


def test_a_moment_and_its_windows_have_one_label(scored: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    client = client_of(scored, tiny_bundle, tmp_path / "labels.csv")
    assert say(client, end_s=12, emotion="angry") == 200
    assert say(client, emotion="calm") == 200
    said = {clip.start_s: clip.emotion for clip in read_manifest(tmp_path / "labels.csv")[0]}
    assert said == {3.0: "calm", 6.0: "angry", 9.0: "angry"}
    assert "calm" in page_of(client, "/moments", where="call_id == 'two' and start_s < 6").words


def test_a_channel_that_is_not_scored_says_nothing_of_the_other(client: FlaskClient) -> None:
    page = page_of(client, "/call", call_id="two", channel=0)
    assert "negativity –" in page.words
    assert "Mean probabilities" not in page.words
    assert "length 0:21" in page.words


def test_an_upload_that_takes_too_long_costs_its_process_alone(tiny_bundle: Bundle) -> None:
    uploads = Uploads(tiny_bundle, RunSettings(), Headerless(), time_limit_s=1e-3)
    try:
        late = uploads.add(BytesIO(sound("WAV", speechlike(300))), "long.wav", None)
        assert late.calls[0]["status"] == "crashed"
        assert "took longer than" in late.calls[0]["error"]
        uploads._time_limit_s = 60
        assert uploads.add(BytesIO(sound("WAV", speechlike(9))), "x.w\0v", None).calls[0]["status"] == "ok"
    finally:
        uploads.close()


def test_who_comes_while_two_are_scored_is_told_to_come_again(client: FlaskClient) -> None:
    uploads = client.application.extensions["uploads"]
    places = [uploads._places.acquire(blocking=False) for _ in range(2)]
    assert places == [True, True]
    data = sound("WAV", speechlike(3))
    code, text = upload(client, data, "a.wav")
    assert (code, "choose yours again in a minute" in text) == (503, True)
    uploads._places.release(2)
    assert upload(client, data, "a.wav")[0] == 303


def test_uploads_are_for_one_call(client: FlaskClient) -> None:
    page = page_of(client, upload(client, sound("FLAC", *[np.zeros(8000, np.float32)] * 3), "three.flac")[1])
    assert "the file has 3 channels, expected 1 to 2" in page.words


def test_long_calls_are_paged(tmp_path: Path, tiny_bundle: Bundle) -> None:
    client = client_of(write_results(tmp_path / "r.parquet", 1, windows=500), tiny_bundle, tmp_path / "l.csv", tmp_path)
    first, last = (page_of(client, "/call", call_id="call-000000", page=number) for number in (1, 3))
    assert [len([a for _, a in page.elements if a.get("class") == "hear"]) for page in (first, last)] == [200, 100]
    assert "page 3 of 3" in last.words
    assert len(json.loads(first.scripts["moments"])) == 500
