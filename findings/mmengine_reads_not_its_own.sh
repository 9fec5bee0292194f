#!/usr/bin/env bash
# mmengine can not load the training checkpoints that it writes, with a current torch.
#
# Expected: mmengine.runner.load_checkpoint reads what CheckpointHook of the same version wrote.
# Seen with mmengine 0.10.7 and torch 2.13.0: it calls torch.load without weights_only, whose default is True since
# torch 2.6. Every training checkpoint holds the logs as HistoryBuffer objects. Each of them pickles the table of its
# class's own methods, which is a reference to builtins.getattr, so allowing HistoryBuffer alone does not help.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 mmengine-lite==0.10.7 packaging==25.0
cd "$folder"
cat > resume.py <<'PYTHON'
import importlib.metadata
import pickle
import sys

import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint

hub = MessageHub.get_instance("training")
hub.update_scalar("train/loss", 0.7)
net = torch.nn.Linear(2, 2)
save_checkpoint({"state_dict": net.state_dict(), "message_hub": hub.state_dict()}, "iter_1.pth")


def refusal(*allowed):
    try:
        with torch.serialization.safe_globals(list(allowed)):
            load_checkpoint(net, "iter_1.pth")
    except pickle.UnpicklingError as error:
        return next(line.strip() for line in str(error).split("\n") if "GLOBAL" in line)
    return "loaded"


print(f"mmengine {importlib.metadata.version('mmengine-lite')}, torch {torch.__version__}")
print("as it is:", first := refusal())
print("HistoryBuffer allowed:", second := refusal(HistoryBuffer))
sys.exit(0 if "HistoryBuffer" in first and "getattr" in second else "it reads them now, or fails in another way")
PYTHON
"$folder/env/bin/python" resume.py
