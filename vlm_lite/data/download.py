"""Downloads that lose nothing: in parallel, tried again with back-off, checked, whole or not there at all.

`pooch` writes each file under a temporary name, compares its hash and renames it; `get` below is what it downloads
with. A file that is there is never asked for again, so a run that was cut goes on at the next call.
"""

import errno
import os
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from tqdm import tqdm

from vlm_lite import hub
from vlm_lite.data.sources import Source
from vlm_lite.files import UserError, atomic_write
from vlm_lite.hub import HUB, locate, told_offline

WORKERS, RETRIES = 16, 4  # waits of 1, 2, 3 and 4 seconds between the tries of one file
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
SLOWEST = 1000  # bytes a second, over all that came, once the second TIMEOUT is over
FULL = (errno.ENOSPC, errno.EDQUOT)
TOLERATED = 0.01  # the part of the pictures that may be missing


class Absent(Exception):
    """The server says that it has no such file: trying again will not help."""


@dataclass(frozen=True)
class Item:
    """One file to have: where it comes from and the path where it goes. `picture`: it must decode as one."""

    source: Source
    path: Path
    picture: bool = False


def fetch(items, *, what="files", tolerated=0.0, mirror=None, progress=True):
    """Bring each Item that is not there yet. Returns {file name: reason} of those that cannot be had.

    Says first how many files and bytes there are to download, and where to. More than `tolerated` of them missing is a
    UserError that names them; fewer are named in a line, and the run goes on. UserError as well for a disk that is too
    small or fills up. Ctrl-C keeps what is whole. mirror: see `hub.locate`; sizes and hashes are the table's, so a
    mirror must hold the same files, unless it is passed here: a generated one has files of its own.
    """
    wanted = [item for item in items if not item.path.exists()]
    if not wanted:
        return {}
    missing = {}
    if told_offline() and "://" in locate(wanted[0].source.address, mirror):
        missing = {
            item.path.name: "not in the local cache, and HF_HUB_OFFLINE is set" for item in wanted
        }
    else:
        _say_cost(wanted, what, progress)
        _fetch_all(wanted, missing, tolerated * len(items), what, mirror, progress)
    if missing:
        some = ", ".join(list(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        text = f"{len(missing)} of {len(items)} {what} cannot be had: {some} ({next(iter(missing.values()))})."
        if len(missing) > tolerated * len(items):
            raise UserError(
                f"{text} Check the network and run again: what is here already counts. A mirror can be "
                "named by VLM_LITE_MIRROR (vlm-lite data list shows the addresses)."
            )
        tqdm.write(f"{text} Going on without.")
    return missing


def _say_cost(items, what, progress):
    size = sum(item.source.size or item.source.about for item in items)
    folder = items[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if progress:
        tqdm.write(
            f"To download: {len(items):,} {what}, about {size / 1e6:,.0f} MB, into {folder} "
            f"({free / 1e9:.1f} GB free)."
        )
    if size > free:
        raise UserError(
            f"{what} need about {size / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free. Free some "
            "space, or set VLM_LITE_HOME to another disk."
        )


def _fetch_all(items, missing, allowed, what, mirror, progress):
    """Download `items` in parallel, noting in `missing` what cannot be had; stops early when that is too much."""
    pool = ThreadPoolExecutor(WORKERS)
    bar = tqdm(
        total=len(items),
        desc=what,
        unit="file",
        disable=not progress,
        mininterval=1.0,
        ncols=min(100, shutil.get_terminal_size((100, 24)).columns),
    )
    try:
        jobs = {pool.submit(_fetch_one, item, mirror): item for item in items}
        for job in as_completed(jobs):
            item = jobs[job]
            try:
                job.result()
            except OSError as error:
                if error.errno in FULL:
                    raise UserError(
                        f"the disk of {item.path.parent} is full. Free some space, or set VLM_LITE_HOME to "
                        "another disk; what is whole counts when you run again."
                    ) from error
                missing[item.path.name] = _reason(error)
            except (Absent, ValueError) as error:
                missing[item.path.name] = _reason(error)
            if len(missing) > allowed:
                break
            bar.update()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()


def _reason(error):
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if str(error)
        else type(error).__name__
    )


def _fetch_one(item, mirror):
    if item.source.address.startswith(f"{HUB}/") and not (mirror or hub.mirror()):
        return _fetch_from_hub(item)
    import pooch

    pooch.get_logger().setLevel("ERROR")
    size, known_hash = (None, None) if mirror else (item.source.size, item.source.hash)
    store = pooch.create(
        item.path.parent,
        base_url="",
        registry={item.path.name: known_hash},
        urls={item.path.name: locate(item.source.address, mirror)},
        retry_if_failed=RETRIES,
    )
    store.fetch(
        item.path.name, downloader=lambda url, output, _: get(url, output, size, item.picture)
    )


def _fetch_from_hub(item):
    """A file of a data set on the hub, by the hub's own client, which checks it and goes on where it was cut."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    parts = item.source.address.removeprefix(f"{HUB}/datasets/").split(
        "/"
    )  # owner, name, "resolve", revision, file
    for attempt in range(1, RETRIES + 2):
        try:
            return hf_hub_download(
                "/".join(parts[:2]),
                "/".join(parts[4:]),
                repo_type="dataset",
                revision=parts[3],
                endpoint=os.environ.get("HF_ENDPOINT"),
                local_dir=item.path.parents[len(parts) - 5],
            )  # the client makes the file's folders
        except OSError as error:
            if (
                isinstance(error, EntryNotFoundError | RepositoryNotFoundError)
                or error.errno in FULL
                or (attempt > RETRIES)
            ):
                raise
            time.sleep(attempt)


def get(address, path, size=None, picture=False):
    """Write the file at `address`, an http(s) address or a path, to `path`.

    Raises Absent where the server has none, requests' errors for what may go better at the next try, and ValueError
    when the length is not what the server or `size` says, or a picture does not decode.
    """
    if "://" not in address:
        if not os.path.isfile(address):
            raise Absent(f"the mirror has no {address}")
        shutil.copyfile(address, path)
    else:
        _get_http(address, path)
    if size is not None and os.path.getsize(path) != size:
        raise ValueError(f"{address} has {os.path.getsize(path)} bytes, expected {size}")
    if picture:
        check_picture(path)
    os.chmod(path, 0o644)  # pooch's temporary files are for their owner only


def _get_http(address, path):
    import requests

    with requests.get(
        address, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
    ) as response:
        if response.status_code in (401, 403, 404, 410):
            raise Absent(f"the server answers {response.status_code} for {address}")
        response.raise_for_status()
        received, started = 0, time.monotonic()
        with open(path, "wb") as file:
            for chunk in response.iter_content(1 << 12):
                file.write(chunk)
                received += len(chunk)
                elapsed = time.monotonic() - started
                if elapsed > TIMEOUT[1] and received < SLOWEST * elapsed:
                    raise requests.Timeout(f"{address} comes at under {SLOWEST} bytes a second")
        expected = response.headers.get("Content-Length")
        if expected is not None and received != int(expected):
            raise ValueError(f"{address} was cut: {received} of {expected} bytes came")


def check_picture(path):
    """ValueError unless the file decodes to its end as a picture of a sane size."""
    try:
        with PIL.Image.open(path) as picture:
            if (
                picture.width * picture.height > PIL.Image.MAX_IMAGE_PIXELS
            ):  # Pillow itself only warns at first
                raise ValueError(
                    f"{picture.width}x{picture.height} pixels could be a decompression bomb"
                )
            picture.load()
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"not a whole picture ({error or type(error).__name__})") from error


def extract(archive, member, path, limit=2_000_000_000):
    """Write the file `member` of a zip to `path`, whole or not at all, under the name that we choose.

    UserError for a zip that is cut or damaged, lacks the member, has a name that leaves its folder, or would unpack to
    more than `limit` bytes.
    """
    again = "Delete it and download it again."
    try:
        with zipfile.ZipFile(archive) as opened:
            bad = [
                name
                for name in opened.namelist()
                if name.startswith(("/", "\\"))
                or ".." in Path(name).parts
                or ":" in name
                or "\\" in name
            ]
            if bad:
                raise UserError(
                    f"{archive}: the entry {bad[0]!r} leaves the folder, so nothing of it is used. {again}"
                )
            if member not in opened.namelist():
                raise UserError(
                    f"{archive} has no {member} (found: {', '.join(opened.namelist()[:8])}). {again}"
                )
            size = opened.getinfo(member).file_size
            if size > limit:
                raise UserError(
                    f"{archive}: {member} unpacks to {size / 1e9:.1f} GB; expected under {limit / 1e9:g} "
                    f"GB. {again}"
                )
            with opened.open(member) as source, atomic_write(path) as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError, zipfile.zlib.error) as error:
        raise UserError(f"{archive} is no whole zip ({error}). {again}") from error
