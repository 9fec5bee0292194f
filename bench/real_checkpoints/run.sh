#!/usr/bin/env bash
# Makes every environment and every file: bench/real_checkpoints/run.sh OUT
#
# Needs Python 3.11 as PYTHON, git, 20 GB, and about half an hour on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3.11}
mkdir -p "$1/venvs" "$1/sources" "$1/files"
out=$(cd "$1" && pwd)

environment() { # NAME, then what to install; prints nothing where it is there
  local name=$1 && shift
  [ -x "$out/venvs/$name/bin/pip" ] || "$python" -m venv "$out/venvs/$name"
  "$out/venvs/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}

source_of() { # OWNER/NAME COMMIT
  local folder="$out/sources/${1#*/}"
  [ -d "$folder" ] || git clone --quiet "https://github.com/$1" "$folder"
  git -C "$folder" checkout --quiet "$2"
}

maker() { # ENVIRONMENT SCRIPT ARGUMENTS...
  local name=$1 script=$2 && shift 2
  "$out/venvs/$name/bin/python" "$here/$script" "$@"
}

torch=torch==2.13.0
source_of MichaelFan01/STDC-Seg 59ff37f
source_of zh320/realtime-semantic-segmentation-pytorch c77b1b6
source_of CoinCheung/BiSeNet 6b4b67a

environment mmseg1 $torch numpy==2.4.6 mmengine==0.10.7 mmcv-lite==2.1.0 ftfy regex prettytable scipy matplotlib setuptools \
  packaging opencv-python-headless
environment mmseg1 --no-deps mmsegmentation==1.2.2
maker mmseg1 official.py "$out/files" "$out/sources/STDC-Seg"
maker mmseg1 mmseg1.py "$out/files"

environment mmseg0 $torch numpy==1.26.4 "setuptools<81" wheel opencv-python-headless==4.11.0.86 addict packaging Pillow \
  pyyaml yapf matplotlib prettytable
MMCV_WITH_OPS=0 environment mmseg0 --no-deps --no-build-isolation mmcv==1.7.2
environment mmseg0 --no-deps mmsegmentation==0.30.0
maker mmseg0 mmseg0.py "$out/files"

environment sg $torch torchvision==0.28.0 torchmetrics==0.8.0 hydra-core omegaconf tqdm psutil scipy matplotlib \
  opencv-python-headless tensorboard einops treelib termcolor "setuptools<81" wheel Deprecated jsonschema boto3 packaging \
  pyparsing pyDeprecate imagesize json-tricks stringcase rapidfuzz albumentations onnx==1.19.1 onnxruntime==1.23.2 \
  pycocotools requests
environment sg --no-deps super-gradients==3.7.1
maker sg super_gradients_files.py "$out/files"

environment paddle paddlepaddle==3.3.1
environment paddle --no-deps paddleseg==2.8.0
maker paddle paddle_files.py "$out/files"

environment lightning $torch pytorch-lightning==2.6.6 omegaconf==2.3.0 numpy==2.4.6 safetensors==0.6.2 h5py onnx==1.19.1 pillow
maker lightning lightning_files.py "$out/files"
mkdir -p "$out/files/torch" "$out/files/others"
maker lightning torch_files.py "$out/files/torch"
maker lightning others.py "$out/files/others" "$out/sources/realtime-semantic-segmentation-pytorch" "$out/sources/BiSeNet"
