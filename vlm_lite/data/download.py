"""Downloads that lose nothing: in parallel, tried again with back-off, checked, whole or not there at all.

`pooch` writes each file under a temporary name, compares its hash and renames it. A file that is there is never asked
for again, so a run that was cut goes on at the next call.
"""

import errno
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vlm_lite import hub
from vlm_lite.data.images import open_image
from vlm_lite.data.sources import Source
from vlm_lite.files import UserError, atomic_write
from vlm_lite.hub import HUB, locate, told_offline

WORKERS, RETRIES = 16, 4  # waits of 1, 2, 3 and 4 seconds between the tries of one file
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
FULL = (errno.ENOSPC, errno.EDQUOT)
TOLERATED = 0.01  # the part of the pictures that may be missing


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
    missing = {}
    if wanted and told_offline() and "://" in locate(wanted[0].source.address, mirror):
        reason = "not in the local cache, and HF_HUB_OFFLINE is set"
        missing = {item.path.name: reason for item in wanted}
    elif wanted:
        _fetch_all(wanted, missing, tolerated * len(items), what, mirror, progress)
    if missing:
        some, reason = ", ".join(list(missing)[:5]), next(iter(missing.values()))
        text = f"{len(missing)} of {len(items)} {what} cannot be had: {some} ({reason})."
        if len(missing) > tolerated * len(items):
            raise UserError(
                f"{text} Check the network and run again: what is here already counts. A mirror can be "
                "named by VLM_LITE_MIRROR (vlm-lite data list shows the addresses)."
            )
        tqdm.write(f"{text} Going on without.")
    return missing


def _fetch_all(items, missing, allowed, what, mirror, progress):
    """Download `items` in parallel, noting in `missing` what cannot be had; stops early when that is too much."""
    size, folder = sum(i.source.size or i.source.about for i in items), items[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    cost = f"{len(items):,} {what}, about {size / 1e6:,.0f} MB, into {folder} ({free / 1e9:.1f} GB free)"
    if size > free:
        raise UserError(
            f"too little space for {cost}. Free some, or set VLM_LITE_HOME to another disk."
        )
    if progress:
        tqdm.write(f"To download: {cost}.")
    pool = ThreadPoolExecutor(WORKERS)
    with tqdm(total=len(items), desc=what, unit="file", disable=not progress, ncols=90) as bar:
        try:
            jobs = {pool.submit(_fetch_one, item, mirror): item for item in items}
            for job in as_completed(jobs):
                try:
                    job.result()
                except (OSError, ValueError) as error:
                    if getattr(error, "errno", None) in FULL:
                        raise UserError(
                            f"the disk of {folder} is full. Free some space, or set VLM_LITE_HOME to another disk; what "
                            "is whole counts when you run again."
                        ) from error
                    name = jobs[job].path.name
                    missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                if len(missing) > allowed:
                    break
                bar.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(item, mirror):
    import pooch

    pooch.get_logger().setLevel("ERROR")
    source, name, address = item.source, item.path.name, locate(item.source.address, mirror)
    if not (mirror or hub.mirror()):
        address = address.replace(HUB, os.environ.get("HF_ENDPOINT") or HUB)
    store = pooch.create(
        item.path.parent,
        base_url="",
        registry={name: None if mirror else source.hash},
        urls={name: address},
        retry_if_failed=RETRIES,
    )
    size = None if mirror else source.size
    store.fetch(name, downloader=lambda url, output, _: get(url, output, size, item.picture))


def get(address, path, size=None, picture=False):
    """Write the file at `address`, an http(s) address or a path, to `path`.

    Raises FileNotFoundError where the server has none, requests' errors for what may go better at the next try, and
    ValueError when the length is not what the server or `size` says, or a picture does not decode.
    """
    if "://" in address:
        import pooch
        import requests

        try:
            pooch.HTTPDownloader(timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})(
                address, path, None
            )
        except requests.HTTPError as error:
            if error.response.status_code in (401, 403, 404, 410):
                raise FileNotFoundError(str(error)) from error  # trying again will not help
            raise
    else:
        shutil.copyfile(address, path)
    if size is not None and os.path.getsize(path) != size:
        raise ValueError(f"{address} has {os.path.getsize(path)} bytes, expected {size}")
    if picture:
        try:
            open_image(path, address)
        except UserError as error:
            raise ValueError(f"not a whole picture ({error})") from error
    os.chmod(path, 0o644)  # pooch's temporary files are for their owner only


def extract(archive, member, path):
    """Write the file `member` of a zip to `path`, whole or not at all, under the name that we choose.

    UserError for a zip that is cut or damaged, or lacks the member.
    """
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member) as source,
            atomic_write(path) as file,
        ):
            shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, EOFError, zipfile.zlib.error) as error:
        raise UserError(
            f"{archive} is no whole zip with {member} in it ({error}). Delete it and download it again."
        ) from error
