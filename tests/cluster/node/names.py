#!/usr/bin/env python3
"""names.py KUBECTL KUBECONFIG HOSTS DNSMASQ-PID: keeps dnsmasq's file of names in step with Services and Endpoints."""

import os
import signal
import sys

from watch import Cluster

kubectl, kubeconfig, hosts, pid_file = sys.argv[1:]
cluster = Cluster(kubectl, kubeconfig)
written = None


def lines():
    """One line for each Service, and for each address of a headless one."""
    items = cluster.get("services,endpoints")
    name = lambda o: f'{o["metadata"]["name"]}.{o["metadata"]["namespace"]}.svc.cluster.local'
    headless = set()
    for item in items:
        if item["kind"] == "Service":
            address = item["spec"].get("clusterIP")
            if address == "None":
                headless.add(name(item))
            elif address:
                yield f"{address} {name(item)}"
    for item in items:
        if item["kind"] == "Endpoints" and name(item) in headless:
            for subset in item.get("subsets") or []:
                ready, starting = subset.get("addresses") or [], subset.get("notReadyAddresses") or []
                for address in ready + starting:
                    host = address.get("hostname")
                    yield f'{address["ip"]} {name(item)}' + (f" {host}.{name(item)}" if host else "")


def refresh():
    """Writes the file when it changed and has it read again."""
    global written
    text = "".join(line + "\n" for line in sorted(set(lines())))
    if text == written:
        return
    with open(hosts, "w", encoding="utf-8") as file:
        file.write(text)
    with open(pid_file, encoding="utf-8") as file:
        os.kill(int(file.read().split()[0]), signal.SIGHUP)
    written = text


cluster.follow(["services", "endpoints"], refresh)
