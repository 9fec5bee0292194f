"""A job on a small Ray cluster of this machine, in which something dies: a program, for Ray is one a process.

    python ray_job.py SCENARIO SOURCES OUT WEIGHTS

Prints a JSON line with what it saw.
"""

import contextlib
import json
import os
import signal
import sys


def main(scenario, sources, out, weights):
    import psutil
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from stdc_fast.bulk import cluster

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    ray.init(address=nodes.address, log_to_driver=False, runtime_env={"env_vars": environment})
    seen = {"killed": 0, "frames": 0}

    def on_frames(count):
        seen["frames"] += count
        actors = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if "MapWorker" in " ".join(one.cmdline()):
                    actors.append(one.pid)
        if seen["killed"] or len(actors) < 2:  # both are to be at work
            return
        seen["killed"] = seen["frames"]
        if scenario == "node":
            nodes.remove_node(workers[1], allow_graceful=False)
        elif scenario == "actor":
            os.kill(actors[0], signal.SIGKILL)

    where = cluster.Cluster(nodes.address, cpus=1, gpus=0)
    options = {"to": "webdataset", "shard": 2}
    loading = {"device": "cpu", "dtype": "float32"}
    summary = cluster.label(weights, loading, [sources], out, where, options, on_frames=on_frames)
    print(json.dumps(seen | {"labelled": summary.labelled, "failed": summary.failed}), flush=True)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
