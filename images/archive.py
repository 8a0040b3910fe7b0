#!/usr/bin/env python3
"""archive.py FOLDER NAME:TAG ENTRYPOINT OUTPUT.tar: a folder as a loadable image, without any container engine.

The archive is what `docker save` writes; `docker load`, `podman load` and `ctr images import` read it. The same folder
gives the same bytes.
"""

import hashlib
import io
import json
import os
import sys
import tarfile

USER = 65532


def layer(folder):
    """The folder as a tar with times, owners and order taken out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for root, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(root, name)
                info = tar.gettarinfo(path, os.path.relpath(path, folder))
                info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
                if info.isreg():
                    with open(path, "rb") as file:
                        tar.addfile(info, file)
                else:
                    tar.addfile(info)
    return buffer.getvalue()


def main(folder, reference, entrypoint, output):
    """Writes the archive beside its place and moves it there."""
    data = layer(folder)
    digest = hashlib.sha256(data).hexdigest()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": [entrypoint], "User": f"{USER}:{USER}", "Env": ["HOME=/tmp"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "images/archive.py"}],
    }).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{name}.json", "RepoTags": [reference], "Layers": [f"{digest}.tar"]}]).encode()
    with tarfile.open(output + ".new", "w") as tar:
        for member, content in ((f"{name}.json", config), (f"{digest}.tar", data), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    os.replace(output + ".new", output)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
