#!/usr/bin/env python3
"""volumes.py KUBECTL KUBECONFIG FOLDER: gives every claim of the class `disk` a folder of the node, and takes it back.

The volumes are of the kind `local`, whose group the kubelet sets as a pod asks; a host path it would leave alone.
"""

import os
import shutil
import sys

from watch import Cluster

kubectl, kubeconfig, folder = sys.argv[1:]
cluster = Cluster(kubectl, kubeconfig)
CLASS = "disk"


def provide(claim, known):
    """A volume for a claim that has none."""
    spec, meta = claim["spec"], claim["metadata"]
    name = f'disk-{meta["uid"]}'
    if spec.get("storageClassName") != CLASS or spec.get("volumeName") or name in known:
        return
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    affinity = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}
    cluster.run("create", "-f", "-", data={
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "storageClassName": CLASS, "accessModes": spec["accessModes"], "capacity": spec["resources"]["requests"],
            "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                         "name": meta["name"], "uid": meta["uid"]},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [affinity]}]}},
        }})


def release(volume):
    """Nobody claims it any more: its folder goes, as a cloud's disk would."""
    name = volume["metadata"]["name"]
    if volume["spec"].get("storageClassName") == CLASS and volume.get("status", {}).get("phase") == "Released":
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        cluster.run("delete", "persistentvolume", name, "--wait=false", "--ignore-not-found")


def refresh():
    """Every claim and every volume, once."""
    volumes = cluster.get("persistentvolumes")
    known = {volume["metadata"]["name"] for volume in volumes}
    for claim in cluster.get("persistentvolumeclaims"):
        provide(claim, known)
    for volume in volumes:
        release(volume)


cluster.follow(["persistentvolumeclaims", "persistentvolumes"], refresh)
