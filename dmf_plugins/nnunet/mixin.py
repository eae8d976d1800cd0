"""Everything DMF adds to an nnU-Net trainer."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from dmf_plugins.core.config import DMFConfig
from dmf_plugins.losses.dmf import DMFLoss
from dmf_plugins.nnunet.compiled import Compiled
from dmf_plugins.nnunet.loss import DeepSupervisionDMFLoss
from dmf_plugins.report.recorder import Recorder

CHECKPOINT_KEY = "dmf"
_RESUME_HELP = (
    "DMF_RESUME=new before the command goes on with the memory and the settings of now, "
    'DMF_RESUME=afresh with an empty memory (so do dmf_resume = "new" and "afresh" in the class); '
    "-pretrained_weights instead of --c starts a new training from its network"
)

if TYPE_CHECKING:  # for the type checker alone: it is mixed into a trainer
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Trainer
else:
    _Trainer = object


class DMFTrainerMixin(_Trainer):
    """Put before any nnU-Net trainer to train with Dynamic Memory Fusion.

    Override :attr:`dmf` with the options of :class:`~dmf_plugins.core.DMFConfig` and
    :attr:`dmf_loss` with those of :class:`~dmf_plugins.losses.DMFLoss`. nnU-Net names the output
    folder after the class, so every setting is a class of its own::

        class nnUNetTrainerDMF_Mine(nnUNetTrainerDMF):
            dmf = {"losses": ["ce", "dice"], "weighting": "mad", "auxiliary": "tversky"}

    Beside nnU-Net's ``progress.png`` it keeps ``dmf_log.csv`` (one row per training step) and
    ``dmf_dynamics.png``. The memory travels in nnU-Net's checkpoints, which stock nnU-Net still
    reads. ``--c`` refuses other settings than the checkpoint's, unless :attr:`dmf_resume` or the
    environment variable ``DMF_RESUME`` is ``new`` (go on with them) or ``afresh`` (empty memory).
    Under multi-GPU training the recorded values are the mean over the GPUs and region terms are
    pooled over each GPU's share of the batch.
    """

    dmf: ClassVar[Mapping[str, Any]] = {}
    dmf_loss: ClassVar[Mapping[str, Any]] = {}
    dmf_resume: ClassVar[str] = "same"

    loss: DeepSupervisionDMFLoss
    _dmf: Recorder
    _dmf_resume_error: str | None = None

    def _build_loss(self) -> DeepSupervisionDMFLoss:
        labels = self.label_manager
        options: dict[str, Any] = {"batch_dice": self.configuration_manager.batch_dice}
        if labels.has_regions:
            options["mode"] = "sigmoid"
        else:
            options.update(mode="softmax", ignore_index=labels.ignore_label)
        loss = DMFLoss.from_config(DMFConfig.from_dict(self.dmf), **{**options, **self.dmf_loss})
        if loss.fusion.learned:
            raise ValueError(
                f"{type(self).__name__}: nnU-Net builds its optimizer before the loss, so the learned "
                f"weights of {self.dmf['weighting']!r} would never move; choose another weighting"
            )
        wrapped = DeepSupervisionDMFLoss(
            loss,
            self._scale_weights(),
            ignore_channel=labels.has_regions and labels.has_ignore_label,
        )
        if self._do_i_compile():  # the memory and the all-reduce stay outside
            wrapped.terms = Compiled(wrapped.terms, self.print_to_log_file)
        return wrapped.to(self.device)

    def _scale_weights(self) -> list[float] | None:
        """Weights of the outputs from fine to coarse, as nnU-Net gives its own loss."""
        if not self.enable_deep_supervision:
            return None
        weights = 0.5 ** np.arange(len(self._get_deep_supervision_scales()))
        # DDP complains about parameters without a gradient, so the coarsest output keeps a trace
        if len(weights) > 1:
            weights[-1] = 1e-6 if self.is_ddp and not self._do_i_compile() else 0
        return list(weights / weights.sum())

    def initialize(self) -> None:
        wanted = dist.get_world_size() if self.is_ddp else 1
        found = torch.cuda.device_count()
        if self.device.type == "cuda" and found < wanted:
            raise RuntimeError(
                f"the training wants {wanted} GPU(s) and finds {found}: "
                + (f"-num_gpus {found}" if found else "-device cpu trains without any, slowly")
            )
        super().initialize()

    def on_train_start(self) -> None:
        if self._dmf_resume_error is not None:
            raise RuntimeError(self._dmf_resume_error)
        super().on_train_start()
        self.loss.loss.plan(self.num_epochs * self.num_iterations_per_epoch)
        self._dmf = Recorder(
            self.loss.loss,
            self.output_folder,
            say=self.print_to_log_file,
            warn=lambda text: self.print_to_log_file(f"WARNING: {text}"),
            main=self.local_rank == 0,
            epoch_steps=self.num_iterations_per_epoch,
        )
        if replaced := self._replaced_loss():
            self.print_to_log_file(f"DMF replaces the loss of {replaced}")
        # rows of epochs that are about to be trained again would be stale
        self._dmf.start(self.current_epoch)

    def _replaced_loss(self) -> str:
        """Class that would build another loss than nnU-Net's usual one, and what it would be."""
        bases = type(self).__mro__
        bases = bases[bases.index(DMFTrainerMixin) + 1 :]
        builder = next(base for base in bases if "_build_loss" in vars(base))
        if builder.__name__ == "nnUNetTrainer":
            return ""
        try:
            loss = super()._build_loss()
        except Exception:  # it may refuse this data set, which is no longer of interest
            return builder.__name__
        return f"{builder.__name__} ({type(getattr(loss, 'loss', loss)).__name__})"

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.loss.train()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        result = super().train_step(batch)
        self._dmf.remember()
        return result

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        means = self._dmf.flush(self.current_epoch).mean().dropna()
        if self.local_rank != 0:
            return
        weights = self._dmf.named(self.loss.loss.weights)
        self.print_to_log_file(f"DMF weights: {weights}; gamma {means['gamma']:.4f}")
        # nnU-Net's own logger knows a fixed set of keys, the others (W&B) take any
        for logger in getattr(self.logger, "loggers", []):
            for key, value in means.items():
                logger.log(f"dmf/{key}", value, self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.loss.eval()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._dmf.draw(final=self.current_epoch >= self.num_epochs)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus our state, written whole or not at all."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        if buffer.tell() == 0:  # not rank 0, or checkpointing is disabled
            return
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[CHECKPOINT_KEY] = self.loss.loss.state_dict_dmf()
        partial = f"{filename}.partial"
        torch.save(checkpoint, partial)
        os.replace(partial, filename)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """nnU-Net's checkpoint, then our state if it holds one that fits.

        A state that is missing or does not fit does not stand in the way of ``--val``; continuing
        the training with it is an error.
        """
        path = filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else None
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except Exception as error:
            if path and os.path.isfile(path) and _is_damaged(path):
                others = sorted(p.name for p in Path(path).parent.glob("*.pth"))
                raise RuntimeError(
                    f"{path} is damaged ({error}). Remove it to continue from another checkpoint; "
                    f"there are: {', '.join(others)}"
                ) from error
            if isinstance(error, pickle.UnpicklingError):
                self.print_to_log_file(
                    f"{path} is whole, but this trainer reads it by torch's safe loading, which no "
                    "checkpoint of nnU-Net passes. If you trust it, put "
                    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 before the command"
                )
            raise
        # mapped, so that only our few numbers are read a second time
        checkpoint = (
            torch.load(path, map_location="cpu", weights_only=False, mmap=True)
            if path
            else filename_or_checkpoint
        )
        try:
            self._dmf_resume_error = None
            self._load_state(checkpoint)
        except ValueError as error:
            self._dmf_resume_error = (
                f"cannot continue {type(self).__name__} from {path}: {error}. {_RESUME_HELP}"
            )
            self.print_to_log_file(f"WARNING: no DMF state taken from the checkpoint: {error}")

    def _load_state(self, checkpoint: Any) -> None:
        resume: Any = os.environ.get("DMF_RESUME") or self.dmf_resume
        if resume not in ("same", "new", "afresh"):
            raise ValueError(f"DMF_RESUME or dmf_resume is {resume!r}, not same, new or afresh")
        if resume == "afresh":
            return
        state = checkpoint.get(CHECKPOINT_KEY)
        if state is None:
            raise ValueError(f"it was written by {checkpoint.get('trainer_name')} without DMF")
        self.loss.loss.load_state_dict_dmf(state, resume)


def _is_damaged(path: str) -> bool:
    """Whether a checkpoint cannot be read as the archive it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except zipfile.BadZipFile:
        return True
