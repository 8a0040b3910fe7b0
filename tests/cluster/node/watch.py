"""What names.py and volumes.py share: told of every change of some kinds of objects, by `kubectl get --watch`."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time


class Cluster:
    """kubectl with an administrator's configuration."""

    def __init__(self, kubectl, kubeconfig):
        self.base = [kubectl, "--kubeconfig", kubeconfig]

    def get(self, kinds):
        """All objects of the kinds, in all namespaces."""
        out = subprocess.check_output(self.base + ["get", kinds, "--all-namespaces", "-o", "json"])
        return json.loads(out)["items"]

    def run(self, *arguments, data=None):
        """Any command, with a JSON object as its input."""
        text = None if data is None else json.dumps(data).encode()
        subprocess.run(self.base + list(arguments), input=text, check=True, stdout=subprocess.DEVNULL)

    def follow(self, kinds, handle):
        """Calls handle() after every change, and once more when it failed; never returns."""
        changed = queue.Queue()

        def watch(kind):
            while True:
                command = self.base + ["get", kind, "--all-namespaces", "--watch", "--no-headers"]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                    for _ in process.stdout:
                        changed.put(kind)
                time.sleep(0.5)
                changed.put(kind)

        def leave(*_):  # we lead our own session: take the watches along
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            os._exit(0)

        signal.signal(signal.SIGTERM, leave)
        for kind in kinds:
            threading.Thread(target=watch, args=(kind,), daemon=True).start()
        while True:
            changed.get()
            while not changed.empty():
                changed.get()
            try:
                handle()
            except (subprocess.CalledProcessError, OSError) as error:
                print(error, file=sys.stderr, flush=True)
                time.sleep(0.5)
                changed.put("again")
