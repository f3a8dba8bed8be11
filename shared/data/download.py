"""Download the datasets, and hand the training scripts their text.

    for each source, until one gives the right bytes:

    server ──> NAME.part ──> checked, ──> NAME.tmp ──> SHA-256 ──> flushed, ──> NAME
       ^          │          unpacked                  right?      os.replace
       └── Range ─┘                                      │ no
      broken off? go on from here                        └──> deleted; the next source

A file under its final name is always whole. What breaks off (a lost connection, Ctrl-C, a
power cut) stays as NAME.part, and the same command goes on from there. Two processes that want
the same file take turns. On a machine without a network every request fails within seconds.

    python shared/data/download.py                             # all of them: 1 GB to fetch
    python shared/data/download.py tiny-shakespeare wikitext-2
    python shared/data/download.py --list
    python shared/data/download.py sms-spam --data-dir ~/data

From Python: load_text("tiny-shakespeare"), load_default("wikitext-2"), ensure("sms-spam").
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn
from urllib.parse import urlsplit

if not __package__:  # run as a script: `shared` is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared import UserError

if TYPE_CHECKING:
    import requests

TIMEOUT = (5.0, 30.0)  # seconds to connect, seconds without a byte
RETRIES = 4  # in a row without one new byte
BACKOFF = 1.0  # seconds before the first retry; each next one waits twice as long
LONGEST_WAIT = 60.0  # a server that asks for more (Retry-After) is given up
HUB = ("hf://", "hf-model://")
KNOCK = 4.0  # seconds to find a host, name look-up included


# ---------------------------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------------------------


class File(NamedTuple):
    """One file of a dataset, and where it can be had.

    A source is a URL, or several separated by spaces whose rows follow each other in the file.
    `URL#member` takes one member of a zip; `hf://owner/name@revision/path` is a file on the
    Hugging Face hub (or on $HF_ENDPOINT); the text of a .parquet is its column `text`.
    """

    path: str  # in the data folder
    size: int  # bytes; about, where sha256 is ""
    sha256: str  # of the finished file; "" where nobody publishes one
    sources: tuple[str, ...]  # tried in this order
    row: Callable[[str], str] = str  # a Parquet row -> its piece of the text


class Dataset(NamedTuple):
    """What --list shows, and the files."""

    licence: str
    home: str
    files: tuple[File, ...]
    instead: str = ""  # set where load_text cannot be used: what the dataset is for


def wikitext_line(row: str) -> str:
    """Undo what the hub did to the empty lines, so that the text equals wiki.*.tokens to the byte.

    >>> wikitext_line(" = Robert Boulter = \\n"), wikitext_line("")
    (' = Robert Boulter = \\n', ' \\n')
    """
    return row or " \n"


def story(row: str) -> str:
    """A story, then the separator that its authors use in TinyStories-train.txt.

    >>> story(" Once upon a time. ")
    'Once upon a time.\\n<|endoftext|>\\n'
    """
    text = row.strip()
    return f"{text}\n<|endoftext|>\n" if text else ""  # 230 of the rows are empty


GITHUB = "https://raw.githubusercontent.com"
RASBT = f"{GITHUB}/rasbt/LLMs-from-scratch"
PYTORCH = f"{GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2"
UCI = "https://archive.ics.uci.edu"
# Revisions are commits: what they name cannot change.
WIKITEXT = "hf://Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3/wikitext-2-v1"
STORIES = "hf://roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/data"
SHARDS = ["0-of-00004-2d5a1467fff1081b", "1-of-00004-5852b56a2bd28fd9"]
SHARDS += ["2-of-00004-a26307300439e943", "3-of-00004-d243063613e5a057"]

SUMS = {  # bytes, SHA-256
    "input.txt": "1115394 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "train.txt": "10797148 9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid.txt": "1121681 f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "1256449 d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    "SMSSpamCollection": "477907 7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
    "data": "203524 7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
    "data-with-preference": "386968 "
    "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
}


def _known(key: str, path: str, *sources: str, row: Callable[[str], str] = str) -> File:
    size, sha256 = SUMS[key].split()
    return File(path, int(size), sha256, sources, row)


def _wikitext(name: str, split: str) -> File:
    hub = f"{WIKITEXT}/{split}-00000-of-00001.parquet"
    return _known(name, f"wikitext-2/{name}", hub, f"{PYTORCH}/{name}", row=wikitext_line)


def _instruct(key: str, folder: str, commit: str) -> File:
    name = f"instruction-{key}.json"
    sources = (f"{RASBT}/{at}/ch07/{folder}/{name}" for at in ("main", commit))
    return _known(key, f"instruct/{name}", *sources)


SHAKESPEARE = _known(
    "input.txt",
    "tiny-shakespeare/input.txt",
    f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    f"{GITHUB}/jcjohnson/torch-rnn/master/data/tiny-shakespeare.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
)
SPAM = _known(
    "SMSSpamCollection",
    "sms-spam/SMSSpamCollection",
    f"{UCI}/static/public/228/sms+spam+collection.zip#SMSSpamCollection",
    f"{UCI}/ml/machine-learning-databases/00228/smsspamcollection.zip#SMSSpamCollection",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip"
    "#SMSSpamCollection",
)
STORIES_TRAIN = " ".join(f"{STORIES}/train-0000{shard}.parquet" for shard in SHARDS)
STORIES_VALID = f"{STORIES}/validation-00000-of-00001-869c898b519ad725.parquet"

DATASETS: dict[str, Dataset] = {
    "tiny-shakespeare": Dataset("public domain", "github.com/karpathy/char-rnn", (SHAKESPEARE,)),
    "wikitext-2": Dataset(
        "CC BY-SA 3.0, GFDL",
        "huggingface.co/datasets/Salesforce/wikitext",
        (
            _wikitext("train.txt", "train"),
            _wikitext("valid.txt", "validation"),
            _wikitext("test.txt", "test"),
        ),
    ),
    "tinystories": Dataset(
        "CDLA-Sharing-1.0",
        "huggingface.co/datasets/roneneldan/TinyStories",
        (
            File("tinystories/train.txt", 1_925_000_000, "", (STORIES_TRAIN,), story),
            File("tinystories/valid.txt", 19_500_000, "", (STORIES_VALID,), story),
        ),
    ),
    "sms-spam": Dataset(
        "CC BY 4.0",
        "archive.ics.uci.edu/dataset/228",
        (SPAM,),
        "labelled messages for model-05-gpt-style/finetune_spam.py",
    ),
    "instruct": Dataset(
        "Apache-2.0",
        "github.com/rasbt/LLMs-from-scratch",
        (
            _instruct("data", "01_main-chapter-code", "4ac480c9ae56ead3ba3bf71060ecbcd783bb8dc6"),
            _instruct(
                "data-with-preference",
                "04_preference-tuning-with-dpo",
                "99af403b9f64dd0f820173402f5a56af41263536",
            ),
        ),
        "instructions and answers for model-05-gpt-style/finetune_instruct.py and finetune_dpo.py",
    ),
}
BUILT_IN = {
    "tales": "written by shared/data/tales.py",
    "tales-25mb": "five times as many tales to train on, the same to validate with",
    "python-stdlib": "this Python's own source",
}
TALES = {"tales": 5_000_000, "tales-25mb": 25_000_000}  # characters to train on


# ---------------------------------------------------------------------------------------------
# One transfer
# ---------------------------------------------------------------------------------------------


class SourceError(Exception):
    """A source that does not deliver. `retries`: how often it is worth asking again.

    `status`: what the server answered, such as 404, where that is final.
    """

    def __init__(
        self, text: str, retries: int = 0, wait: float | None = None, status: int = 0
    ) -> None:
        super().__init__(text)
        self.retries, self.wait, self.status = retries, wait, status


def fetch(url: str, part: Path) -> str:
    """Bring a URL into `part`, going on where an earlier try, or an earlier run, broke off.

    Returns the SHA-256 that the hub states for the file, "" where none is stated.
    """
    knock(address(url))
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return transfer(url, part)
        except SourceError as problem:
            grew = part.exists() and part.stat().st_size > before
            failures = 1 if grew else failures + 1  # a slow line may break off any number of times
            if failures > problem.retries:
                raise
            pause = BACKOFF * 2 ** (failures - 1) if problem.wait is None else problem.wait
            say(f"{problem}; trying again in {pause:.0f} s")
            time.sleep(pause)


def address(url: str) -> str:
    """hf://owner/name@revision/path -> its address on the hub, or on $HF_ENDPOINT.

    hf-model:// is a model's repository, hf:// a dataset's.
    """
    if not url.startswith(HUB):
        return url.partition("#")[0]
    kind, _, place = url.partition("://")
    repository, _, rest = place.partition("@")
    revision, _, path = rest.partition("/")
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?(/.*)?", endpoint):
        raise SourceError(f"HF_ENDPOINT {endpoint!r} is not a web address")
    folder = "datasets/" if kind == "hf" else ""
    return f"{endpoint}/{folder}{repository}/resolve/{revision}/{path}"


def knock(url: str) -> None:
    """Raise SourceError unless the host answers within KNOCK seconds.

    In a thread, because looking up a name has no time-out of its own: where packets vanish
    (a firewall, a café's login page) it and each address of the host would take their time.
    """
    import socket
    from threading import Thread

    import requests

    parts = urlsplit(url)
    if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)):
        return  # only the proxy can tell
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answers: list[str] = []

    def try_each_family() -> None:
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, place in {each[0]: each for each in found}.values():
                with socket.socket(family, kind, protocol) as line:
                    line.settimeout(KNOCK / 2)
                    answers.append("" if line.connect_ex(place) == 0 else "no connection")
        except OSError as error:
            answers.append(error.strerror or "no connection")

    thread = Thread(target=try_each_family, daemon=True)
    thread.start()
    deadline = time.monotonic() + KNOCK
    while thread.is_alive() and "" not in answers and time.monotonic() < deadline:
        thread.join(0.01)
    if "" not in answers:
        raise SourceError(f"no connection to {parts.hostname}")


def transfer(url: str, part: Path) -> str:
    """One request; see fetch. Raises SourceError."""
    import requests

    tag_file = part.with_name(part.name + ".tag")  # whose bytes these are: URL, validator
    tag = tag_file.read_text(encoding="utf-8").splitlines() if tag_file.exists() else []
    resume = part.exists() and tag[:1] == [url] and len(tag) == 2
    headers = {"Accept-Encoding": "identity", "User-Agent": "language-models-from-scratch"}
    have = part.stat().st_size if resume else 0
    if have:  # If-Range: should the file have changed, send it whole
        headers |= {"Range": f"bytes={have}-", "If-Range": tag[1]}
    try:
        with requests.get(address(url), headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
                    part.unlink()
                    raise SourceError("the server cannot go on where the download stopped", RETRIES)
            else:
                check_status(response)
                if response.status_code == 200:
                    have = 0
                    part.write_bytes(b"")  # first empty, then tagged: never another file's bytes
                    tag_file.write_text(f"{url}\n{validator(response)}", encoding="utf-8")
                elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    part.unlink()
                    raise SourceError("the server sent another part than asked for", RETRIES)
                receive(response, part, have)
            return stated_sha256(response) if url.startswith(HUB) else ""
    except requests.RequestException as error:
        raise explain(error, address(url)) from error


def check_status(response: requests.Response) -> None:
    """Raise SourceError for anything but 200 and 206."""
    status, host = response.status_code, urlsplit(response.url).hostname
    if status in (200, 206):
        return
    text = f"{host} answers {status} {response.reason or ''}".rstrip()
    if status not in (408, 425, 429) and status < 500:
        raise SourceError(text, status=status)  # 404 and the like: asking again changes nothing
    wait = retry_after(response.headers.get("Retry-After", ""))
    if wait is not None and wait > LONGEST_WAIT:
        raise SourceError(f"{text} and asks to wait {wait:.0f} s")
    raise SourceError(text, RETRIES, wait)


def retry_after(value: str) -> float | None:
    """Seconds to wait; the header may also be a date.

    >>> retry_after("7"), retry_after(""), retry_after("Fri, 01 Jan 1999 00:00:00 GMT")
    (7.0, None, 0.0)
    """
    from email.utils import parsedate_to_datetime

    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def validator(response: requests.Response) -> str:
    """What If-Range may name: a strong ETag, else a date; "" when a resume would be a guess."""
    etag = response.headers.get("ETag", "")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return ""  # compressed all the same: its byte positions are not ours
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def stated_sha256(response: requests.Response) -> str:
    """The checksum in the hub's answer, which is the one before the redirect to the storage."""
    for answer in (*response.history, response):
        etag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag", "")
        found = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', etag)
        if found and "X-Repo-Commit" in answer.headers:
            return found[1]
    return ""


def receive(response: requests.Response, part: Path, have: int) -> None:
    """Append the body to `part`, with a progress bar. Raises SourceError when it ends too early."""
    from tqdm import tqdm

    length = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    total = have + int(length) if length.isdigit() and plain else None
    name = f"{part.parent.name}/{part.name.removesuffix('.part')}"
    # disable=None: no bar where stderr is not a terminal
    with (
        part.open("ab") as out,
        tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
    ):
        response.raw.enforce_content_length = False  # keep the last bytes before a break
        for block in response.iter_content(1 << 14):
            out.write(block)
            bar.update(len(block))
            have += len(block)
    if total is not None and have < total:
        raise SourceError(f"the connection closed after {have:,} of {total:,} bytes", RETRIES)


def explain(error: requests.RequestException, url: str) -> SourceError:
    """What a library's exception means, and whether to ask again."""
    import requests
    from urllib3.exceptions import NewConnectionError

    host = urlsplit(url).hostname
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.exceptions.SSLError):
        return SourceError(f"no safe connection to {host} (its certificate is not accepted)")
    if isinstance(error, requests.exceptions.ProxyError):
        return SourceError(f"the proxy does not lead to {host}", retries=1)
    if isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError):
        return SourceError(f"no connection to {host}", retries=1)
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return SourceError(f"{host} sent nothing for {TIMEOUT[1]:.0f} s", RETRIES)
    if isinstance(error, requests.TooManyRedirects | ValueError):  # ValueError: not a URL
        return SourceError(f"{host} leads nowhere ({type(error).__name__})")
    return SourceError(f"the connection to {host} broke off", RETRIES)


# ---------------------------------------------------------------------------------------------
# One file: .part -> .tmp -> checked -> in place
# ---------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state(file: File, folder: Path) -> str:
    """`missing`, `right`, or `wrong` (there, but not the published bytes)."""
    path = folder / file.path
    if not path.is_file():
        return "missing"
    return "right" if file.sha256 in ("", sha256_of(path)) else "wrong"


def check_online() -> None:
    """Raise SourceError where the environment asks for no network."""
    if (os.environ.get("HF_HUB_OFFLINE") or "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceError("HF_HUB_OFFLINE is set")


def obtain(file: File, folder: Path) -> None:
    """Put a file in place, from the first source that has it. Raises SourceError, OSError."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.parent):
        if state(file, folder) == "right":  # another process was faster
            return
        # the text, and beside it what was fetched: Parquet has half the size of its text
        need = int(1.6 * file.size) + 2**20
        if (free := shutil.disk_usage(path.parent).free) < need:
            raise SourceError(f"{need / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free")
        problems: list[str] = []
        for source in file.sources:
            host = urlsplit(address(source)).hostname
            if f"no connection to {host}" not in problems:  # once is enough
                try:
                    return build(file, source.split(), path)
                except SourceError as problem:
                    problems.append(str(problem))
                except ImportError as error:
                    what = f"the Python package {error.name} is not installed"
                    raise UserError(f"{what}: run `pip install -e .` in the checkout") from error
        raise SourceError(", ".join(dict.fromkeys(problems)))


def build(file: File, urls: list[str], path: Path) -> None:
    """Fetch, unpack, check and move into place one source of a file. Raises SourceError."""
    parts = [path.with_name(f"{path.name}.{i}.part") for i in range(len(urls))]
    new = path.with_name(path.name + ".tmp")
    if len(urls) == 1:
        parts = [path.with_name(f"{path.name}.part")]
    for url, part in zip(urls, parts, strict=True):
        stated = fetch(url, part)
        if stated and sha256_of(part) != stated:
            part.unlink()
            raise SourceError(f"wrong bytes from {urlsplit(address(url)).hostname}")
    try:
        unpack(urls, parts, file, new)
        found = sha256_of(new) if file.sha256 else ""
        if found != file.sha256:
            raise SourceError(f"wrong bytes from {urlsplit(address(urls[0])).hostname}")
    except SourceError:
        discard(*parts, new)  # a resume would only bring the same bytes again
        raise
    if path.exists():  # somebody's own file under this name: never thrown away
        kept = path.with_name(f"{path.name}.{sha256_of(path)[:8]}.old")
        path.replace(kept)
        say(f"{path} had other bytes than the published file: kept as {kept.name}")
    new.replace(path)  # os.replace: all or nothing
    discard(*parts)


def unpack(urls: list[str], parts: list[Path], file: File, new: Path) -> None:
    """Write `new` from what was fetched: as it is, a zip's member, or Parquet rows."""
    with new.open("wb") as out:
        if urlsplit(urls[0]).fragment:
            out.write(read_member(parts[0], urls[0], file.size + 1))
        elif urls[0].endswith(".parquet"):
            for part in parts:
                for rows in read_rows(part):
                    out.write("".join(map(file.row, rows)).encode())
        else:
            with parts[0].open("rb") as whole:
                shutil.copyfileobj(whole, out)
        out.flush()
        os.fsync(out.fileno())  # before the rename, or a power cut could leave an empty file


def read_member(archive: Path, url: str, most: int) -> bytes:
    """The first `most` bytes of the member that URL#member names: a bomb bursts here."""
    member = urlsplit(url).fragment
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as inside:
            return inside.read(most)
    except Exception as error:  # zipfile raises a dozen kinds where bytes are damaged
        raise SourceError(f"{address(url)} is not a zip with {member}") from error


def read_rows(parquet: Path) -> Iterator[list[str]]:
    """The column `text` of a Parquet file, up to a thousand rows at a time.

    pyarrow comes with `datasets`, which reads Parquet through it too; but its streaming reader
    loads ahead: on 290 MB it held 490 MB, this holds 31 (one row group).
    """
    import pyarrow.parquet
    from tqdm import tqdm

    try:
        with pyarrow.parquet.ParquetFile(parquet) as table:
            size = table.metadata.num_rows
            with tqdm(desc=parquet.name, total=size, unit=" rows", disable=None) as bar:
                for group in range(table.num_row_groups):
                    for batch in table.iter_batches(1000, [group], columns=["text"]):
                        yield [each or "" for each in batch.column(0).to_pylist()]
                        bar.update(len(batch))
    except Exception as error:  # damaged bytes: ArrowException, OSError, UnicodeDecodeError, ...
        raise SourceError(f"{parquet.name} is not Parquet with a column `text`") from error


def discard(*paths: Path) -> None:
    """Delete files of our own making, and their tags."""
    for path in paths:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".tag").unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time downloads into a folder. The lock dies with its process."""
    with (folder / ".lock").open("a") as handle:
        told = False
        while not locked(handle):
            if not told:
                say(f"another process is downloading into {folder}; waiting for it")
            told = True
            time.sleep(0.1)
        yield


def locked(handle: IO[str]) -> bool:
    """Try to take the lock, without waiting."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: the checksum still guards the result
        return True
    return True


def say(text: str) -> None:
    """A line for the person who waits; stdout stays clean for the program's own output."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# For the training scripts
# ---------------------------------------------------------------------------------------------


class Corpus(NamedTuple):
    """The text of a dataset."""

    name: str  # "tiny-shakespeare", or the path as given
    train: str
    valid: str
    sha256: str  # of both texts, hex: recorded in checkpoints; a resume checks it
    floor: float | None  # entropy of `valid` in bits per character; of tales, else None


def data_dir() -> Path:
    """Where the data lie: $LMFS_DATA_DIR, else shared/data/cache/ in the checkout."""
    given = os.environ.get("LMFS_DATA_DIR")
    return Path(given).expanduser() if given else Path(__file__).resolve().parent / "cache"


def _folder(given: str | os.PathLike[str] | None) -> Path:
    return Path(given).expanduser() if given else data_dir()


def ensure(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    only: tuple[str, ...] = (),
    replace: bool = False,
) -> list[Path]:
    """The paths of a dataset's files, downloaded if they are missing.

    only: file names, such as ("train.txt", "valid.txt"); all of them when empty.
    replace: fetch anew a file with the wrong checksum (the old one is kept beside it);
    otherwise such a file is an error. Raises UserError.
    """
    folder = _folder(data_dir)
    files = [file for file in DATASETS[name].files if not only or Path(file.path).name in only]
    again = f"python shared/data/download.py {name}"
    if data_dir is not None:
        again += f" --data-dir {folder}"
    for file in files:
        where = folder / file.path
        try:
            found = state(file, folder)
            if found == "wrong" and not replace:
                raise UserError(
                    f"{where} is not the published file (another SHA-256): run `{again}` for the "
                    "right one (yours is kept), or give the path itself to train on it as it is"
                )
            if found != "right":
                check_online()
                obtain(file, folder)
        except SourceError as problem:
            raise UserError(
                f"{file.path} is not in {folder} and could not be downloaded ({problem}): "
                f"try again with `{again}`, or copy the file there by hand"
            ) from problem
        except OSError as error:
            trouble = "cannot be read" if where.is_file() else "is missing and cannot be written"
            raise UserError(
                f"{where} {trouble} ({error.strerror or error}): mend that, or choose another "
                "folder with LMFS_DATA_DIR or --data-dir"
            ) from error
    return [folder / file.path for file in files]


def load_text(name_or_path: str, data_dir: str | os.PathLike[str] | None = None) -> Corpus:
    """The training and validation text of a named dataset or of a UTF-8 text file.

    tales: 5,000,000 and 250,000 characters, written now; tales-25mb: 25,000,000 to train on, which
    begin with those of tales, and the same to validate with. wikitext-2 and tinystories: their own
    splits (tinystories is 2 GB of text and takes about 4 to 8 GB of memory). python-stdlib: every
    tenth file is validation. tiny-shakespeare and files: the first 90 % train, the rest valid.
    A named dataset that is not on disk is downloaded. Raises UserError.
    """
    name = name_or_path
    floor = None
    if name in TALES:
        from shared.data.tales import write_corpus

        train, _ = write_corpus(TALES[name], 1, "train")
        valid, floor = write_corpus(250_000, 2, "valid")
    elif name == "python-stdlib":
        train, valid = python_stdlib()
    elif name in DATASETS:
        if instead := DATASETS[name].instead:
            raise UserError(
                f"{name} is not a text to train a language model on but {instead}: "
                f"choose {', '.join(text_names())}, or a text file"
            )
        paths = ensure(name, data_dir, ("input.txt", "train.txt", "valid.txt"))
        train, valid = (read(path) for path in paths) if len(paths) > 1 else split(paths[0])
    else:
        train, valid = split(Path(name).expanduser())
    return Corpus(name, train, valid, corpus_sha256(train, valid), floor)


def load_default(name: str) -> Corpus:
    """A stage's own dataset; where it cannot be had, one line says why, and it is tales.

    For a default only: a dataset that somebody named is loaded with load_text, never swapped.
    """
    try:
        return load_text(name)
    except UserError as error:
        reason = str(error).partition(": ")[0]
        print(f"{reason}; training on the built-in tales instead", flush=True)
    return load_text("tales")


def text_names() -> list[str]:
    """The names that load_text knows."""
    return [*BUILT_IN, *(name for name, each in DATASETS.items() if not each.instead)]


def read(path: Path) -> str:
    """A UTF-8 text file; line ends become \\n, a byte order mark goes. Raises UserError."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give one text file")
        if not path.exists():
            raise UserError(
                f"{path} is neither a dataset nor a file: choose {', '.join(text_names())}, "
                "or the path of a text file"
            )
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}): save it as UTF-8 text"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory: choose a smaller text") from error
    if not text:
        raise UserError(f"{path} is empty: give a file with text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split(path: Path) -> tuple[str, str]:
    """The first 90 % of a file, and the rest."""
    text = read(path)
    cut = int(0.9 * len(text))
    if not cut:
        raise UserError(f"{path} has only one character: give a longer text")
    return text[:cut], text[cut:]


def python_stdlib() -> tuple[str, str]:
    """The standard library of this Python: every tenth file, whole, is validation.

    Left out: installed packages, tests, idlelib, and tables that a program wrote (encodings,
    pydoc's topics, the build's settings). About 9 MB; another Python version, other text.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test"}
    left_out |= {"lib2to3", "turtledemo", "encodings", "pydoc_data", "__pycache__"}
    files = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not left_out & set(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
    )
    if len(files) < 10:
        raise UserError(f"{root} holds no standard library to read: choose --dataset tales")
    texts = [read(root / name) for name in files if (root / name).stat().st_size]
    valid = texts[9::10]
    del texts[9::10]
    return "\n".join(texts), "\n".join(valid)


def corpus_sha256(train: str, valid: str) -> str:
    """SHA-256 of the UTF-8 of both texts, a zero byte between them."""
    digest = hashlib.sha256()
    for text in (train, "\0", valid):
        for at in range(0, len(text), 1 << 20):  # in pieces: the text may be gigabytes
            digest.update(text[at : at + (1 << 20)].encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Errors as one line, like everywhere else here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see python shared/data/download.py --help")


def listing(folder: Path) -> str:
    """The table that --list prints."""
    rows = [("name", "size", "licence", "source", "on disk")]
    for name, dataset in DATASETS.items():
        states = [state(file, folder) for file in dataset.files]
        here = states.count("right")
        verdict = "yes" if here == len(states) else f"{here} of {len(states)} files" if here else ""
        verdict = "other bytes than published" if "wrong" in states else verdict or "no"
        size = f"{sum(file.size for file in dataset.files) / 1e6:,.1f} MB"
        rows.append((name, size, dataset.licence, dataset.home, verdict))
    rows += [(name, "", "", made, "built in") for name, made in BUILT_IN.items()]
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(f"{cell:{wide[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([*lines, f"folder: {folder}"])


def download(name: str, folder: Path) -> None:
    """One line about a dataset that is there or has arrived. Raises UserError."""
    if name in BUILT_IN:
        print(f"{name}: built in ({BUILT_IN[name]}), nothing to download")
        return
    there = all(state(file, folder) == "right" for file in DATASETS[name].files)
    ensure(name, folder, replace=True)
    place = (folder / DATASETS[name].files[0].path).parent
    print(f"{name}: {'already in' if there else 'downloaded to'} {place}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Download what is named; 0 when all of it is there, 2 when not."""
    parser = Parser(
        prog="download.py",
        description="Download the datasets. Those already there are left alone.",
        epilog="What they are, and how to do without a network: shared/data/README.md",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them when none is given")
    parser.add_argument("--list", action="store_true", help="show them and what is on disk")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="default: $LMFS_DATA_DIR, else shared/data/cache"
    )
    failed = 0
    try:
        args = parser.parse_args(argv)
        folder = _folder(args.data_dir)
        unknown = [name for name in args.names if name not in DATASETS and name not in BUILT_IN]
        if unknown:
            known = ", ".join(DATASETS)
            raise UserError(f"unknown dataset {', '.join(unknown)}: choose from {known}")
        if args.list:
            print(listing(folder))
            return 0
        for name in dict.fromkeys(args.names or DATASETS):
            try:
                download(name, folder)
            except UserError as error:  # the others may still be had
                say(f"error: {error}")
                failed = 2
    except UserError as error:
        say(f"error: {error}")
        failed = 2
    except KeyboardInterrupt:
        say("stopped: what has arrived is kept, and the same command goes on from there")
        failed = 130
    return failed


if __name__ == "__main__":
    sys.exit(main())
