"""The downloader against a server that does everything wrong: what is kept, refused and why, and resumed."""

import io
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bad_server import BadServer, bad_server, jpeg
from boothlab.errors import UserError
from boothlab.images import download as module
from boothlab.images.download import DownloadSettings, backoff, check_target, download, shrink
from boothlab.images.download_record import Job, Result, read_record
from boothlab.images.fetching import FetchError, FetchLimits, _retry_after, host_of, is_public
from boothlab.images.politeness import HostQueue
from boothlab.progress import Reporter

LIMITS = FetchLimits(max_bytes=200_000, timeout_s=1.0, deadline_s=2.0, max_redirects=2, allow_private=True)
FAST = DownloadSettings(limits=LIMITS, rate=1000.0, attempts=3, backoff_s=0.01, per_host=4)
QUIET = Reporter(quiet=True)


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as running:
        yield running


def get(server: BadServer, root: Path, *paths: str, settings: DownloadSettings = FAST) -> list[Result]:
    jobs = [Job(str(i), server.url + path, f"a/{i}.jpg") for i, path in enumerate(paths)]
    return download(jobs, root, root / "downloads.jsonl", settings, QUIET)


def test_a_good_image_is_kept_whole(server: BadServer, tmp_path: Path) -> None:
    (result,) = get(server, tmp_path, "/good.jpg")
    assert (result.ok, result.attempts, result.format, result.reason) == (True, 1, "JPEG", "")
    assert (result.original_width, result.original_height, result.original_bytes) == (32, 24, len(jpeg()))
    assert (result.width, result.height) == (32, 24)  # not enlarged
    written = (tmp_path / "a" / "0.jpg").read_bytes()
    assert len(written) == result.bytes
    with Image.open(io.BytesIO(written)) as image:
        assert (image.format, image.size) == ("JPEG", (32, 24))
    assert read_record(tmp_path / "downloads.jsonl") == {"a/0.jpg": result}
    assert [agent.split("/")[0] for agent in server.agents] == ["boothlab"]


@pytest.mark.parametrize(
    ("path", "attempts", "final", "reason"),
    [
        ("/none.jpg", 1, True, "HTTP 404 Not Found"),
        ("/500", 3, False, "HTTP 500 Internal Server Error"),
        ("/drops", 3, False, "the connection broke"),
        ("/html", 1, True, "a web page, not an image"),
        ("/text", 1, True, "the server says it is text/html, not an image"),
        ("/garbage", 1, True, "it is not an image in a known format, or its beginning is damaged"),
        ("/empty", 1, True, "the file is empty"),
        ("/too_long", 3, False, "cut short"),
        ("/too_short", 3, False, "it is damaged or cut short"),
        ("/cut", 3, False, "it is damaged or cut short"),
        ("/announced", 1, False, "larger than the limit of 200000 bytes (99999999999 announced)"),
        ("/endless", 1, False, "larger than the limit of 200000 bytes"),
        ("/gzip", 1, True, "sent with the encoding gzip, which was not asked for"),
        ("/loop", 1, False, "more than 2 redirects"),
        ("/to_file", 1, True, "a redirect to what is not an http or https address"),
        ("/nonsense", 3, False, "the connection broke"),
    ],
)
def test_every_failure_has_its_reason(
    server: BadServer, tmp_path: Path, path: str, attempts: int, final: bool, reason: str
) -> None:
    (result,) = get(server, tmp_path, path)
    assert not result.ok
    assert result.reason.startswith(reason)
    assert (result.attempts, result.final) == (attempts, final)
    assert list(tmp_path.rglob("*.jpg")) == []
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("path", ["/dripping", "/dripping_head", "/held"])
def test_an_answer_that_takes_for_ever_is_given_up(server: BadServer, tmp_path: Path, path: str) -> None:
    settings = replace(FAST, attempts=1, limits=replace(LIMITS, timeout_s=0.4, deadline_s=0.4))
    before = time.monotonic()
    (result,) = get(server, tmp_path, path, settings=settings)
    assert not result.ok
    assert not result.final
    assert time.monotonic() - before < 3


@pytest.mark.parametrize(("path", "attempts"), [("/drops_once", 2), ("/500_twice", 3), ("/moved", 1), ("/png", 1)])
def test_what_gets_well_is_kept(server: BadServer, tmp_path: Path, path: str, attempts: int) -> None:
    (result,) = get(server, tmp_path, path)
    assert (result.ok, result.attempts) == (True, attempts)


def test_large_images_are_reduced_to_the_long_side(server: BadServer, tmp_path: Path) -> None:
    (result,) = get(server, tmp_path, "/png")
    assert (result.format, result.original_width, result.width, result.height) == ("PNG", 1300, 640, 320)
    with Image.open(tmp_path / "a" / "0.jpg") as image:
        assert image.size == (640, 320)
        assert image.getpixel((5, 5)) == (255, 255, 255)  # what was transparent


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 700))
def test_shrinking_keeps_the_longer_side_and_the_proportions(width: int, height: int, side: int) -> None:
    small = shrink(Image.new("1", (width, height)), side)
    assert max(small.size) == min(max(width, height), side)
    scale = min(1.0, side / max(width, height))
    assert all(abs(now - max(1, was * scale)) <= 0.5 for now, was in zip(small.size, (width, height), strict=True))


def test_retry_after_is_honoured(server: BadServer, tmp_path: Path) -> None:
    (result,) = get(server, tmp_path, "/429_once")
    assert result.ok
    first, second = server.times["/429_once"]
    assert second - first >= 1.0


def test_a_server_that_asks_for_an_hour_is_left_alone(server: BadServer, tmp_path: Path) -> None:
    paths = ["/429_hour", *["/good.jpg"] * 5]
    results = get(server, tmp_path, *paths, settings=replace(FAST, workers=1))
    assert [result.ok for result in results] == [False] * 6
    assert (
        results[0].reason == "HTTP 429 Too Many Requests; the server asks to wait 3600 seconds, so run it again later"
    )
    assert {result.final for result in results} == {False}
    assert server.asked == {"/429_hour": 1}


def test_retry_after_takes_seconds_and_dates_and_no_nonsense() -> None:
    assert [_retry_after(text) for text in (None, "7", "soon", "-3", "9" * 6000)] == [None, 7.0, None, None, None]
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_private_addresses_are_refused_unless_allowed(server: BadServer, tmp_path: Path) -> None:
    settings = replace(FAST, limits=replace(LIMITS, allow_private=False))
    (result,) = get(server, tmp_path, "/good.jpg", settings=settings)
    assert result.reason.startswith("an address of a private network")
    assert not result.final  # another setting may let it through
    assert server.asked == {}  # nothing was sent


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *[("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("127.0.0.1", False)],
        *[("10.1.2.3", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("::1", False)],
        *[
            ("fe80::1%eth0", False),
            ("::ffff:10.0.0.1", False),
            ("64:ff9b::7f00:1", False),
            ("64:ff9b::5db8:d822", True),
        ],
        *[("2002:7f00:1::", False), ("224.0.0.1", False), ("fd00::1", False)],
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://a/b.jpg", "//a/b.jpg", "http://", "http://u:p@a/b", "http://[::1", "x"]
)
def test_addresses_that_are_none_are_refused_without_a_request(url: str, tmp_path: Path) -> None:
    (result,) = download([Job("1", url, "1.jpg")], tmp_path, tmp_path / "r.jsonl", FAST, QUIET)
    assert (result.ok, result.final, result.attempts) == (False, True, 0)
    assert "address" in result.reason


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(url: str) -> None:
    try:
        assert host_of(url)
    except FetchError as error:
        assert error.reason.isprintable()


@pytest.mark.parametrize(
    "target",
    ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "a//x.jpg", "", ".hidden", "a\\b.jpg", "a/\x00.jpg", "C:x.jpg"],
)
def test_no_target_leads_out_of_the_folder(target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file name inside"):
        download([Job("1", "http://a/b", target)], tmp_path, tmp_path / "r", FAST, QUIET)


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path)
    with pytest.raises(UserError, match="no file name inside"):
        check_target(tmp_path / "root", "a/x.jpg")


def test_finished_files_and_final_failures_are_skipped(server: BadServer, tmp_path: Path) -> None:
    first = get(server, tmp_path, "/good.jpg", "/none.jpg", "/500")
    asked = server.asked.copy()
    assert get(server, tmp_path, "/good.jpg", "/none.jpg", "/500") == first
    assert server.asked - asked == {"/500": 3}  # what may get well is tried again
    again = get(server, tmp_path, "/good.jpg", "/none.jpg", "/500", settings=replace(FAST, retry_failed=True))
    assert again == first
    assert server.asked["/none.jpg"] == 2
    get(server, tmp_path, "/good.jpg", settings=replace(FAST, long_side=16))
    assert server.asked["/good.jpg"] == 2  # another form is another file
    (tmp_path / "a" / "0.jpg").write_bytes(b"cut")
    get(server, tmp_path, "/good.jpg", settings=replace(FAST, long_side=16))
    assert server.asked["/good.jpg"] == 3


def test_a_record_that_was_cut_short_or_scribbled_in_is_read_as_far_as_it_goes(
    server: BadServer, tmp_path: Path
) -> None:
    get(server, tmp_path, "/good.jpg", "/moved")
    record = tmp_path / "downloads.jsonl"
    lines = sorted(record.read_bytes().splitlines(), key=lambda line: json.loads(line)["target"])
    noise = [
        b"",
        b"[1]",
        b'{"target": "a/0.jpg"}',
        lines[0].replace(b'"ok": true', b'"ok": "yes"'),
        b"\xff",
        b"[" * 9999,
    ]
    record.write_bytes(b"\n".join([*noise, *lines, lines[1][:40]]))
    assert sorted(read_record(record)) == ["a/0.jpg", "a/1.jpg"]
    asked = server.asked.copy()
    get(server, tmp_path, "/good.jpg", "/moved", "/slow")
    assert server.asked - asked == {"/slow": 1}
    assert sorted(read_record(record)) == ["a/0.jpg", "a/1.jpg", "a/2.jpg"]


def test_a_host_gets_no_more_requests_at_once_and_a_second_than_allowed(server: BadServer, tmp_path: Path) -> None:
    settings = replace(FAST, workers=8, per_host=2, rate=10.0)
    jobs = [Job(str(i), f"{server.url}/slow/{i}", f"{i}.jpg") for i in range(8)]
    download(jobs, tmp_path, tmp_path / "r.jsonl", settings, QUIET)
    assert server.most_active == 2
    starts = [time for times in server.times.values() for time in times]
    assert max(starts) - min(starts) > 0.5  # seven pauses of 0.1, less the threads' jitter


def test_the_queue_keeps_pace_takes_turns_and_waits_for_what_comes_back() -> None:
    now = [100.0]
    tasks: HostQueue[str] = HostQueue(per_host=1, interval_s=2.0, clock=lambda: now[0])
    stopped = threading.Event()
    for name in ("a1", "a2", "b1"):
        tasks.put(name, name[0])
    assert [tasks.take(stopped), tasks.take(stopped)] == ["a1", "b1"]
    tasks.put("b2", "b", delay_s=1.0)
    tasks.done("a")
    tasks.done("b")
    now[0] = 102.0
    assert tasks.take(stopped) == "a2"
    tasks.pause("b", 10.0)
    assert tasks.reserve("b") == 10.0
    assert tasks.reserve("b") == 12.0
    tasks.done("a")
    assert tasks.drop("b") == ["b2"]
    assert tasks.take(stopped) is None


def test_backoff_grows_has_jitter_and_is_the_same_every_time() -> None:
    settings = DownloadSettings(backoff_s=1.0, backoff_max_s=30.0, seed=0)
    waits = [backoff(settings, "17", attempt) for attempt in range(1, 9)]
    assert waits == [backoff(settings, "17", attempt) for attempt in range(1, 9)]
    assert [round(wait, 4) for wait in waits[:3]] == [0.7347, 1.7362, 3.6512]
    longest = [min(2.0**n, 30.0) for n in range(8)]
    assert all(top / 2 <= wait < top for wait, top in zip(waits, longest, strict=True))
    assert backoff(replace(settings, seed=1), "17", 1) != waits[0] != backoff(settings, "18", 1)
    assert backoff(settings, "17", 100_000) <= 30


def test_a_disk_that_is_full_ends_it_all(server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise UserError("cannot write: the disk is full")

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(UserError, match="disk is full"):
        get(server, tmp_path, *["/good.jpg"] * 20)


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*_self_signed(tmp_path))
    with bad_server() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http", "https") + "/good.jpg"
        (result,) = download([Job("1", url, "1.jpg")], tmp_path, tmp_path / "r.jsonl", FAST, QUIET)
    assert result.reason.startswith("no trusted TLS connection")
    assert (result.final, result.attempts) == (True, 1)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the test's certificate")
    import datetime
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(*form))
    return files


CHILD = """
import sys
from pathlib import Path
from boothlab.images.download import DownloadSettings, download
from boothlab.images.download_record import Job
from boothlab.images.fetching import FetchLimits
from boothlab.progress import Reporter
root, url = Path(sys.argv[1]), sys.argv[2]
jobs = [Job(str(i), f"{url}/{'slow' if i < 12 else 'held'}/{i}", f"{i}.jpg") for i in range(16)]
settings = DownloadSettings(limits=FetchLimits(allow_private=True), rate=100.0, per_host=4)
download(jobs, root, root / "r.jsonl", settings, Reporter(quiet=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_killed_is_continued(server: BadServer, tmp_path: Path, how: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), server.url],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while len(read_record(tmp_path / "r.jsonl")) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    before = time.monotonic()
    os.kill(child.pid, how)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert time.monotonic() - before < 8
    done = read_record(tmp_path / "r.jsonl")
    assert len(done) == 12
    for path in tmp_path.glob("*.jpg"):
        with Image.open(path) as image:
            image.load()
    server.released.set()
    asked = server.asked.copy()
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), server.url], check=True, timeout=60)
    assert server.asked - asked == {f"/held/{i}": 1 for i in range(12, 16)}
    assert len(list(tmp_path.glob("*.jpg"))) == 16
