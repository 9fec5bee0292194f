"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of a model, and the folder that they share.

The weights file holds all that loading needs: :func:`stdc_fast.load` takes it, and the folder, without the
Hub's package. ``config.json`` and the card repeat it for people and for the Hub's pages.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from stdc_fast import card, checkpoints, hub
from stdc_fast.checkpoints import options
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.freshness import replaced_methods, structure
from stdc_fast.reference.layers import STDCAddModule
from stdc_fast.reference.networks import STDCSeg
from stdc_fast.transforms import Transforms

if TYPE_CHECKING:
    from stdc_fast.calibration.record import Calibration
    from stdc_fast.segmenter import Segmenter

log = logging.getLogger(__name__)

# What metadata say of a training and its result; they are of the weights as they were then.
_OF_TRAINING = ("miou", "miou_split", "recipe", "iteration", "commit", "torch", "init", "splits")


class Pretrained:
    """What :class:`stdc_fast.Segmenter` has of ``huggingface_hub.ModelHubMixin``, with the same names.

    Attributes:
        metadata: what the weights say of themselves, JSON values; ``docs/checkpoints.md`` has the keys.
    """

    metadata: Mapping[str, object] = types.MappingProxyType({})
    calibration: Calibration | None
    _sums: tuple[int, ...] | None = None

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        metadata: Mapping[str, object] | None = None,
        half: bool = False,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_options: object,
    ) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and, if there is none, ``README.md`` into a folder.

        Args:
            save_directory: the folder; it is made.
            metadata: what is to be said of the weights besides or instead of :attr:`metadata`, such as
                ``{"miou": 0.71, "miou_split": "CamVid val", "terms": "MIT"}``.
            half: store convolutions as float16, see :func:`stdc_fast.checkpoints.save`.
            repo_id: name of the model in its card; with ``push_to_hub`` where it goes, by default the name of
                the folder.
            push_to_hub: send it, too; ``push_options`` are those of :meth:`push_to_hub`.

        If weights were changed since they were loaded, their file does not say any more what was measured on
        them, nor has it ranges for int8, and a warning says so. Returns the address of the commit if there is
        one.

        Raises UserError for a network that no file can say, and if the folder can not be written.
        """
        folder = Path(save_directory)
        if push_options and not push_to_hub:
            raise UserError(f"{next(iter(push_options))} is for push_to_hub=True; leave it out")
        facts = said(self, metadata)
        configuration = json.dumps(card.config(facts, self.network), indent=2, ensure_ascii=False) + "\n"
        text = card.text(facts, self.network, repo_id or "OWNER/NAME")
        self._save(folder / hub.WEIGHTS, facts, half)
        write_atomic(folder / hub.CONFIG, lambda p: p.write_text(configuration, "utf-8"))
        if not (folder / hub.CARD).exists():
            write_atomic(folder / hub.CARD, lambda p: p.write_text(text, "utf-8"))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, metadata=metadata, half=half, **push_options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        filename: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **load_options: object,
    ) -> Segmenter:
        """The model of a repository of the Hub, which is downloaded, or of a folder.

        Args:
            pretrained_model_name_or_path: a folder; OWNER/NAME, or an ``hf://`` address, of a repository; or
                any other name or file that :func:`stdc_fast.load` takes.
            revision: branch, tag or commit of the repository.
            filename: the file of weights in it, where it has several and no ``model.safetensors``. Files of
                all families are read, also pickles such as ``pytorch_model.bin``, of which nothing is run.
            token: for what is not public; None takes HF_TOKEN or the token of ``hf auth login``.
            cache_dir: the package's cache; None takes its own.
            force_download: also what is in the cache.
            local_files_only: take it from the cache, as with STDC_FAST_OFFLINE or HF_HUB_OFFLINE set.
            load_options: as for :func:`stdc_fast.load`.

        Raises UserError, in one line, for all that is missing, not open, not certain, or not reached.
        """
        from stdc_fast import zoo

        if not isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            raise UserError(f"expected a folder or OWNER/NAME, not {pretrained_model_name_or_path!r}")
        text = os.fspath(pretrained_model_name_or_path)
        path, place = Path(text), None
        if not (filename is None or isinstance(filename, str)):
            raise UserError(f"filename must be the name of a file, not {filename!r}")
        if os.path.isdir(path):
            found = path / filename if filename else zoo.find(path)
        elif hub.is_address(text) or (hub.is_repository(text) and not os.path.exists(path)):
            place = hub.parse(text) if hub.is_address(text) else hub.Place(text)
            if (revision and place.revision) or (filename and place.file):
                raise UserError(f"{text}: has a revision or a file already; give it once")
            place = hub.Place(place.repository, revision or place.revision, filename or place.file)
            given = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
            given = {k: v for k, v in given.items() if v not in (None, False) or v is token is False}
            found = hub.find(place, True, **given, **({"local_files_only": True} if local_files_only else {}))
        else:
            found = zoo.find(text, fetch=not local_files_only)
        if place is None and (revision or token or cache_dir or force_download):
            raise UserError(f"{text}: is no repository of the Hub; leave revision, token and the like out")
        if filename and place is None and not path.is_dir():
            raise UserError(f"{text}: is the weights themselves; leave filename {filename} out")
        model = zoo.load(text if place is None and not path.is_dir() else found, **load_options)
        check_config(found, model)
        if place is not None:
            model.name = place.repository
        elif path.is_dir():
            model.name = path.resolve().name
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metadata: Mapping[str, object] | None = None,
        half: bool = False,
        commit_message: str = "Push model using stdc_fast",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        replace_card: bool = False,
    ) -> str:
        """Send what :meth:`save_pretrained` writes to a repository of the Hub, in one commit.

        Args:
            repo_id: NAME or OWNER/NAME; the repository is made if there is none.
            metadata, half: as for :meth:`save_pretrained`.
            commit_message: of the commit.
            private: whether a new repository is; None leaves that to the Hub.
            token: None takes HF_TOKEN or the token of ``hf auth login``.
            branch: of the commit; None for the main one.
            create_pr: propose the commit instead of making it.
            replace_card: write the card anew, though the repository has one.

        Returns the address of the commit. Raises UserError if the Hub refuses it or can not be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, metadata=metadata, half=half, repo_id=repo_id)
            return hub.upload(
                Path(folder), repo_id, commit_message, private=private, token=token, branch=branch,
                create_pr=create_pr, keep_card=not replace_card,
            )  # fmt: skip

    def save_file(
        self, path: str | os.PathLike, *, metadata: Mapping[str, object] | None = None, half: bool = False
    ) -> dict[str, object]:
        """Write the weights alone, as :meth:`save_pretrained` does; returns the metadata in the file."""
        facts = said(self, metadata)
        self._save(path, facts, half)
        return facts

    def _save(self, path: str | os.PathLike, facts: dict[str, object], half: bool) -> None:
        checkpoints.save(checkpoints.inference_state(self.network), path, facts, half, self.calibration)

    @property
    def transforms(self) -> Transforms:
        """What :meth:`predict` does to an image before the network, as a callable; ``describe()`` says it."""
        return Transforms(self.input_size, self.network.mean, self.network.std)

    def remember(self, metadata: Mapping[str, object]) -> None:
        """Keep what a file says of the weights as they are now."""
        self.metadata, self._sums = dict(metadata), sums(self.network)


def sums(network: STDCSeg) -> tuple[int, ...]:
    """Of the bits of each tensor of a network, as float32: other numbers for other weights."""
    state = checkpoints.inference_state(network).values()
    arrays = (t.detach().to("cpu", torch.float32).numpy() for t in state)
    # Whole numbers, so that their order does not matter; of 32 bits, so that loading takes no longer.
    return tuple(int(np.add.reduce(a.view(np.uint32), axis=None, dtype=np.uint32)) for a in arrays)


def of_weights(model: Segmenter) -> dict[str, object]:
    """What the file of a model said of its weights, as far as it holds; a line says what does not."""
    facts = {k: v for k, v in model.metadata.items() if k not in ("format", "short_side", "scale")}
    if model._sums is not None and sums(model.network) != model._sums:
        lost = [facts.pop(name) for name in _OF_TRAINING if name in facts]
        facts["source"] = f"changed after loading {model.name}; before: {facts.get('source', 'unknown')}"
        if lost:
            log.warning(
                "%s: its weights were changed after loading; mIoU and training of the file are left out, "
                "save_pretrained(metadata={...}) says those of the new ones", model.name,
            )  # fmt: skip
    return facts


def said(model: Segmenter, more: Mapping[str, object] | None = None) -> dict[str, object]:
    """The metadata that go with a model's weights now; ``more`` adds to them.

    UserError for a network that its metadata do not describe, so that another one would be loaded.
    """
    if not (more is None or isinstance(more, Mapping)):
        raise UserError(f"metadata must be a dict, such as {{'miou': 0.71}}, not {more!r}")
    facts = of_weights(model)
    network, size = model.network, model.input_size
    facts |= {"variant": network.variant, "classes": list(model.classes.names)}
    facts["palette"] = [list(colour) for colour in model.classes.palette]
    facts |= {"short_side": size.short_side} if size.short_side else {}
    facts |= {"scale": size.scale} if size.scale != 1.0 else {}
    of_network = options.of_network(network)
    facts = {k: v for k, v in facts.items() if k not in of_network} | options.differing(of_network)
    for name in more or {}:
        if name in ("variant", "format", *options.OPTIONS):
            raise UserError(f"metadata {name!r} would change how the weights are read; leave it out")
    facts.update(more or {})
    try:
        facts = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"metadata must be values of JSON ({error})") from None
    if (miou := facts.get("miou")) is not None and not (type(miou) in (int, float) and 0 <= miou <= 1):
        raise UserError(f"metadata miou must be a share from 0 to 1, such as 0.71, not {miou!r}")
    check_sayable(network, checkpoints.from_state(checkpoints.inference_state(network), facts).network())
    return facts


def as_published(network: STDCSeg) -> STDCSeg:
    """What its constructor made, by the names of its tensors; without values."""
    names, modules = network.state_dict().keys(), list(network.modules())
    with torch.device("meta"):
        return STDCSeg(
            network.variant,
            network.num_classes,
            "add" if any(isinstance(m, STDCAddModule) for m in modules) else "cat",
            all(m.count_include_pad for m in modules if isinstance(m, nn.AvgPool2d)),
            classifier_bias="conv_out.conv_out.bias" in names,
            fusion_bias="ffm.conv1.bias" in names,
            conv_last="cp.backbone.conv_last.conv.weight" in names,
        )


def check_sayable(network: STDCSeg, rebuilt: STDCSeg) -> None:
    """UserError where a network computes something else than what would be loaded; warns of hooks."""
    mine = {name: rest for name, *rest in structure(network)}
    modules = dict(network.named_modules())
    for name, *rest in structure(rebuilt):
        where = name or "the network"
        if rest != mine.get(name):
            raise UserError(
                f"{where} is not what its weights would be loaded into, which no file can say; put back the "
                "module or setting that was there"
            )
        old = modules[name]
        if own := replaced_methods(old):
            raise UserError(f"{where} has a {own[0]} in the place of its class's, which no file can say")
        if old._forward_hooks or old._forward_pre_hooks:
            log.warning("%s has a forward hook, which is not in the file", where)


def check_config(weights: Path, model: Segmenter) -> None:
    """UserError if the ``config.json`` beside the weights of a model says something else than they do."""
    path = weights.with_name(hub.CONFIG)
    if weights.name != hub.WEIGHTS or not path.is_file():
        return
    try:
        there = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can not be read ({error}); remove it, or save the model again") from None
    if not isinstance(there, dict) or there.get("library_name") != card.LIBRARY:
        return
    for name, value in card.config(model.metadata, model.network).items():
        if name in there and name != "library_version" and there[name] != value:
            raise UserError(
                f"{path}: says another {name} than {hub.WEIGHTS}, which counts; save the model again, or "
                f"remove {hub.CONFIG}"
            )
