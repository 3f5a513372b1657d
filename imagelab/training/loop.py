"""A training that can be stopped and resumed, around a loop that the script itself writes:

    training = Training(path, "gan_mnist", config, data, networks=..., optimizers=..., ema="generator")
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                ...                            # one step; random draws from training.rng
                training.log(loss=loss)
            after_epoch(training, epoch)       # observes: grids, scores

The state goes into the checkpoint after every epoch, and when Ctrl-C or SIGTERM stops the run. A training
that is loaded goes on where it stopped. It ends at the same weights as one that was never stopped, bit
for bit on one machine with the same number of threads. With --keep-every, numbered copies of the
checkpoint stay beside it.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch

from imagelab.data.tensors import Described, batch_indices
from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import Interrupted, Network, UserError, generator, is_of_the_machine
from imagelab.setup.settings import settings_dict
from imagelab.setup.terminal import bar, tell, tell_once
from imagelab.training import distributed
from imagelab.training.checkpoints import (
    check_settings,
    load_checkpoint,
    load_weights,
    resumes_on,
    save_checkpoint,
)
from imagelab.training.compiled import compiled
from imagelab.training.tensorboard import Board

# Settings that a resumed run may change: they have no influence on the weights after each step.
MAY_CHANGE_ON_RESUME = {
    "output_dir",
    "data_dir",
    "resume",
    "sample_only",
    "checkpoint",
    "keep_every",
    "num_samples",
    "samples_file",
    "time_limit",
    "show",
    "export",
    "tensorboard",
    "compile",
    "debug",
    "device",
    "epochs",
}


def warmup_and_decay(progress: float, warmup: float, decay_from: float) -> float:
    """The learning rate's factor at `progress` (0 to 1) through a training.

    It rises to 1 over the share `warmup` of the steps, stays there, and falls to 0 from the share
    `decay_from` on (1: never).
    """
    up = progress / warmup if warmup > 0 else 1.0
    down = (1 - progress) / (1 - decay_from) if decay_from < 1 else 1.0
    return min(up, 1.0, down)


def one_cycle(progress: float) -> float:
    """Up over the first quarter of the steps, then down to 0 (after Smith 2018)."""
    return warmup_and_decay(progress, 0.25, 0.25)


def global_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Of torch's own generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_global_states(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    """Put them back, as far as a checkpoint has them."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type].cpu(), device)


def can_resume(config, path: Path, first: bool = False) -> bool:
    """Whether this training, one of several in a run, resumes: with --resume, if it has a checkpoint.

    A run that was stopped in its `first` training has no checkpoints of the later ones: they start from
    the beginning. The first one is always resumed; if its checkpoint is missing, loading says so.
    """
    return config.resume and (first or Path(path).is_file())


# Called after every epoch with the training and the epoch's number. It must not change the training.
Observer = Callable[["Training", int], None]


def no_observer(_training: Training, _epoch: int) -> None:
    """The observer that does nothing."""


def kept_path(path: Path, epoch: int) -> Path:
    """Where --keep-every keeps the checkpoint `path` of an epoch: 'vae.pth' as 'vae_epoch_0012.pth'."""
    return path.with_name(f"{path.stem}_epoch_{epoch:04d}{path.suffix}")


class Training(Generic[Network]):
    """See the module's docstring. `networks` and `optimizers` map names to objects.

    The networks of a `Training[Net]` are of the class Net. `rng` is the run's random generator, on the
    data's device. `ema` names the network of which an exponential moving average is kept (`averaged`).
    Its decay is min(decay, (1 + n)/(10 + n)) after n steps: with a constant decay, the average of a short
    run would still hold much of the first random weights.

    `may_change_on_resume` names settings besides those of MAY_CHANGE_ON_RESUME. `go_on` says, in the
    message after Ctrl-C, how the run is resumed. Every `log_every` steps, a line shows the means of what
    was logged. An epoch of several `parts` comes in as many rounds of the outer loop, each with its share
    of the batches: a long epoch is then saved and observed on its way. A `shared` training belongs to all
    processes of torchrun (imagelab/training/distributed.py): they stop after the same step, and one of
    them writes.
    """

    def __init__(
        self,
        path: Path,
        script: str,
        config,
        data: Described,
        *,
        networks: dict[str, Network],
        optimizers: Mapping[str, torch.optim.Optimizer],
        ema: str | None = None,
        ema_decay: float = 0.999,
        may_change_on_resume: tuple[str, ...] = (),
        label: str = "",
        log_every: int | None = None,
        parts: int = 1,
        go_on: str = "--resume goes on",
        shared: bool = False,
    ) -> None:
        self.path, self.script, self.config, self.data = Path(path), script, config, data
        self.networks, self.optimizers = networks, optimizers
        self.rng = generator(config.seed, f"{script} training", data.images.device)
        self.averaged = copy.deepcopy(networks[ema]).requires_grad_(False) if ema else None
        self.ema, self.ema_decay = ema, ema_decay
        self.extra: dict[str, Any] = {}  # saved besides: what sampling or resuming needs
        self.epoch = self.step = 0  # epochs done; steps of the current one, with the running step
        self.history: dict[str, list[torch.Tensor]] = {}
        self.time_limit = getattr(config, "time_limit", None)
        self._seconds_before = 0.0
        self._started: float | None = None
        self.go_on, self.shared = go_on, shared and distributed.world() > 1
        self.may_change = MAY_CHANGE_ON_RESUME | set(may_change_on_resume)
        self.label, self.log_every, self.parts = label or script, log_every, parts
        self._stop: int | None = None
        self._asked = 0.0  # when
        self._handlers: dict = {}
        self._bar: Any = None
        self._compiled = contextlib.ExitStack()
        if self.shared and self.time_limit is not None:
            raise UserError("--time-limit needs a single process: their clocks would not agree.")
        if getattr(config, "quick", False) and not config.resume:
            self._refuse_to_overwrite_a_full_run()
        self._watched = getattr(config, "tensorboard", False) and (
            not shared or distributed.writes()
        )
        self._board: Board | None = None

    def load(self) -> None:
        """Go on from the checkpoint at `path`. Raises UserError where it is of another run."""
        saved = load_checkpoint(self.path, self.script, self.data.images.device)
        config = settings_dict(self.config)
        fixed = saved["config"].keys() & config.keys() - self.may_change - {"dataset"}
        check_settings(saved, f"--resume: {self.path}", config, sorted(fixed))
        then, now = saved["dataset"], self.data.describe()
        if then != {**now, "source": then.get("source")}:
            alike = all(then.get(name) == now[name] for name in ("name", "train"))
            raise UserError(
                f"--resume: {self.path} was trained on "
                + ("other pictures" if alike else f"{then.get('train')} images")
                + f" of {then.get('name')}, not on "
                + ("these." if alike else f"{now['train']} of {now['name']}.")
            )
        self._refuse_more_than_asked(saved)
        self._mention_other_threads(saved)
        try:
            self.epoch, self.step = saved["epoch"], saved["step"]
            for name, network in self.networks.items():
                load_weights(network, saved["model"][name], self.path)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(saved["optimizer"][name])
            if self.averaged is not None:
                load_weights(self.averaged, saved["ema"], self.path)
            state = saved["rng"]["training"].cpu()
            if not resumes_on(saved, self.rng.device):
                raise UserError(
                    f"--resume: {self.path} was trained on another kind of device than "
                    f"{self.data.images.device}; --device chooses it."
                )
            self.rng.set_state(state)
            set_global_states(self.rng.device, saved["rng"])
            self.history = {k: [v] for k, v in saved["history"].items()}
            self.extra = saved["extra"]
            self._seconds_before = float(saved.get("seconds", 0.0))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            if is_of_the_machine(error):
                raise
            raise UserError(f"{self.path} cannot be continued with these settings.") from error

    @property
    def model(self) -> Network:
        """The network to use after the training: the averaged one if there is one, else the first one."""
        return next(iter(self.networks.values())) if self.averaged is None else self.averaged

    # --- the loop ---------------------------------------------------------------------------------

    def __enter__(self) -> Training:
        if getattr(self.config, "compile", False):
            self._compiled.enter_context(compiled(self.networks.values()))
        self._started = time.perf_counter()
        if self._watched:
            self._board = Board(self.path, self.steps_done)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask_to_stop)
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        self._seconds_before, self._started = self.seconds_used, None
        self._compiled.close()
        if self._bar is not None:
            self._bar.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None and self._stop is not None:  # asked for in the last step, or after it
            raise self._stopped("after the training")
        if self.shared and isinstance(error, RuntimeError):  # torch.distributed's, as a rule
            raise UserError(
                f"the training ended because another of its {distributed.world()} processes did "
                f"(or: {str(error).splitlines()[0]}); {self.path} holds the last epoch done, if "
                f"there is one, and {self.go_on}."
            ) from error

    @property
    def steps_per_epoch(self) -> int:
        return max(len(self.data.images) // self.config.batch_size, 1)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def steps_done(self) -> int:
        """Steps since the start, the current one included."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def epochs_done(self) -> float:
        """Epochs since the start, with the part of the current one."""
        return self.steps_done / self.steps_per_epoch

    @property
    def last_epoch(self) -> int:
        """The current epoch, or the last one done."""
        return self.epoch + (self.step > 0)

    @property
    def progress(self) -> float:
        """The share of the training that is done, the current step included: above 0, below 1.

        It is the share of the steps, or of the time limit if that ends the training sooner.
        """
        time_used = self.seconds_used / self.time_limit if self.time_limit else 0
        return min(max(self.steps_done / (self.total_steps + 1), time_used), 1 - 1e-6)

    @property
    def seconds_used(self) -> float:
        """How long the loop has been running, including the time before a --resume."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds_before + running

    @property
    def time_is_up(self) -> bool:
        """Whether --time-limit is reached; the first step is always done."""
        limit = self.time_limit
        return limit is not None and self.steps_done > 0 and self.seconds_used >= limit

    def epochs(self) -> Iterator[int]:
        """The number of the current epoch, from 1 on, once for each of its parts. After each part the
        state is saved."""
        total = None if self.time_limit else self.total_steps
        self._hidden = self.shared and not distributed.writes()
        self._bar = bar(self.label, "step", total, self.steps_done, keep=True, hidden=self._hidden)
        while self.epoch < self.config.epochs and not self.time_is_up:
            yield self.epoch + 1
            if self.step >= self.steps_per_epoch:  # else a part is done, or the time was up
                self.epoch, self.step = self.epoch + 1, 0
            self.save()
            self._keep_a_copy()
            self._leave_if_asked()
        self._bar.close()

    def batches(self) -> Iterator[torch.Tensor]:
        """Index tensors of the batches still to do in this epoch, or in this part of it."""
        seed, n = self.config.seed, len(self.data.images)
        device = self.data.images.device
        order = batch_indices(n, self.config.batch_size, seed, self.epoch + 1, device)
        for indices in order[self.step :]:
            self.step += 1
            yield indices
            self._update_average()
            self._show_progress()
            if self.log_every and self.steps_done % self.log_every == 0:
                self.announce_means(self.log_every)
            if self._asked_to_stop() and self.step < len(order):
                self.save()
                self._leave_if_asked()
            if self.time_is_up or self.step % -(-self.steps_per_epoch // self.parts) == 0:
                break

    def is_last(self, epoch: int) -> bool:
        """Whether `epoch` is the last one, also because the time is up."""
        return epoch == self.config.epochs or self.time_is_up

    def log(self, **values: torch.Tensor) -> None:
        """Note 0-dimensional tensors of this step; they become Python numbers only when shown."""
        for name, value in values.items():
            parts = self.history.setdefault(name, [])
            if self.shared and not distributed.writes():
                parts.clear()  # a process that writes nothing needs the last value only
            parts.append(value.detach().reshape(1))
        if self._board is not None:
            self._board.add_numbers(values, self.steps_done)

    def show_picture(self, name: str, picture: np.ndarray) -> None:
        """Send a picture (H, W) or (H, W, 3) uint8 of this step to TensorBoard, with --tensorboard."""
        if self._board is not None:
            self._board.add_picture(name, picture, self.steps_done)

    def curve(self, name: str) -> torch.Tensor:
        """Everything logged under `name`, one value per step, (steps,) float32 on the CPU."""
        parts = self.history.get(name)
        if not parts:
            return torch.zeros(0)
        on_cpu = [part for part in parts if part.device.type == "cpu"]  # of a loaded checkpoint
        new = parts[len(on_cpu) :]  # one copy for all of them
        return torch.cat([*on_cpu, *([torch.cat(new).cpu()] if new else [])]).float()

    def smoothed(self, name: str, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Epochs and means of `window` steps each of what was logged under `name`, for a figure."""
        values = smooth(self.curve(name), window)
        return (torch.arange(len(values)) + 1) * window / self.steps_per_epoch, values

    def recent(self, name: str, steps: int) -> float:
        """The mean of the last `steps` values logged under `name`."""
        return self.curve(name)[-steps:].mean().item()

    def announce(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        tell(text)

    def announce_means(self, steps: int) -> None:
        """Print the means of all that was logged in the last `steps` steps."""
        curves = {name: self.curve(name) for name in self.history}
        means = (
            f"{name} {curve[-steps:].mean():.3f}"
            for name, curve in curves.items()
            if len(curve) == self.steps_done  # what is noted once an epoch is shorter
        )
        self.announce(f"epoch {self.last_epoch} step {self.steps_done:,}: {'  '.join(means)}")

    # --- inside -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.averaged is None or self.ema is None:
            return
        n = self.steps_done
        decay = min(self.ema_decay, (1 + n) / (10 + n))
        averaged, current = self.averaged, self.networks[self.ema]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage] (torch.optim's own)
            list(averaged.parameters()), list(current.parameters()), 1 - decay
        )
        for mean, value in zip(averaged.buffers(), current.buffers(), strict=True):
            mean.copy_(value)

    def _show_progress(self) -> None:
        if self._bar.update(1) and not self._hidden:  # shown just now; the next time it shows this
            losses = {k: f"{v[-1].item():.3f}" for k, v in self.history.items() if "loss" in k}
            self._bar.set_postfix(losses, refresh=False)

    def _ask_to_stop(self, number: int, _frame) -> None:
        # The second Ctrl-C does not wait for the end of the step. But torchrun passes on the first one,
        # which the processes have already received: that one does not count.
        if self._stop is not None and not (self.shared and time.perf_counter() - self._asked < 10):
            raise KeyboardInterrupt("stopped at once; the checkpoint of the last epoch stands.")
        self._stop, self._asked = number, time.perf_counter()

    def _asked_to_stop(self) -> bool:
        if self.shared and distributed.any_of(self._stop is not None):
            self._stop = self._stop or signal.SIGINT
        return self._stop is not None

    def _leave_if_asked(self) -> None:
        if self._stop is None or self.epoch >= self.config.epochs:
            return
        # With a time limit nobody knows of how many.
        of = "" if self.time_limit else f" of {self.total_steps:,}"
        raise self._stopped(f"after {self.steps_done:,}{of} steps")

    def _stopped(self, when: str) -> Interrupted:
        stop = Interrupted(f"stopped {when} and saved in {self.path}; {self.go_on}.")
        stop.terminated = self._stop == signal.SIGTERM
        return stop

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        self._refuse_what_is_not_finite()
        if self.shared and not distributed.writes():
            return
        if self._board is not None:
            self._board.flush()
        average = self.averaged.state_dict() if self.averaged is not None else {}
        self.history = {name: [self.curve(name)] for name in self.history}
        save_checkpoint(
            self.path,
            {
                "script": self.script,
                "config": settings_dict(self.config),
                "dataset": self.data.describe(),
                "epoch": self.epoch,
                "step": self.step,
                "model": {name: network.state_dict() for name, network in self.networks.items()},
                "ema": average,
                "optimizer": {name: o.state_dict() for name, o in self.optimizers.items()},
                "rng": {"training": self.rng.get_state(), **global_states(self.rng.device)},
                "history": {name: parts[0] for name, parts in self.history.items()},
                "extra": self.extra,
                "seconds": self.seconds_used,
                "threads": torch.get_num_threads(),
            },
        )

    def _keep_a_copy(self) -> None:
        """With --keep-every: a numbered copy of the checkpoint of an epoch that was just saved."""
        every = getattr(self.config, "keep_every", None)
        if not every or self.step > 0 or self.epoch % every:
            return
        if not self.shared or distributed.writes():
            with atomic_path(kept_path(self.path, self.epoch)) as temporary:
                shutil.copyfile(self.path, temporary)

    def _refuse_what_is_not_finite(self) -> None:
        """A checkpoint of NaN must not replace the last good one: no training recovers from NaN."""
        losses = [
            parts[-1][-1:] for name, parts in self.history.items() if "loss" in name and parts
        ]
        weights = [v for network in self.networks.values() for v in network.state_dict().values()]
        device = self.data.images.device
        finite = [values.isfinite().all().to(device) for values in [*losses, *weights]]
        if bool(torch.stack(finite).all()):  # the one place where the program waits for them
            return
        lr = getattr(self.config, "lr", None)
        kept = f"{self.path} is as it was" if self.path.is_file() else "nothing was saved"
        raise UserError(
            f"The loss or the weights are no longer finite after {self.steps_done:,} steps, in epoch "
            f"{self.last_epoch}; {kept}. Try a lower learning rate"
            + (f" than --lr {lr:g}." if lr is not None else ".")
        )

    def _refuse_to_overwrite_a_full_run(self) -> None:
        """A quick run must not overwrite a training of minutes or hours, or a file it cannot read."""
        if not self.path.is_file():
            return
        if not load_checkpoint(self.path, self.script)["config"].get("quick", True):
            raise UserError(
                f"{self.path} is from a whole training, which --quick would overwrite: choose "
                "another --output-dir, or move it away."
            )

    def _refuse_more_than_asked(self, saved: dict) -> None:
        """A longer training cannot be resumed as a shorter one."""
        limit, then = self.time_limit, saved["config"].get("time_limit")
        if saved["epoch"] > self.config.epochs:
            done, asked = f"{saved['epoch']} epochs", f"--epochs {self.config.epochs}"
        elif limit and then and then > limit and saved.get("seconds", 0) > limit:
            done, asked = f"{then:g} seconds", f"{limit:g}"
        else:
            return
        raise UserError(
            f"--resume: {self.path} has been trained for {done} already, more than {asked}."
        )

    def _mention_other_threads(self, saved: dict) -> None:
        """Another number of threads adds up in another order, which changes the last bits of sums."""
        here = torch.get_num_threads()
        then = saved.get("threads", here)  # older checkpoints do not say
        on_cpu = self.data.images.device.type == "cpu"
        if then != here and on_cpu and not (self.shared and not distributed.writes()):
            tell_once(
                f"Threads until here {then}, from here on {here}: the weights may differ in their last "
                "bits from those of a run that was never stopped."
            )


def smooth(values: torch.Tensor, window: int) -> torch.Tensor:
    """Means over consecutive windows, (N,) to (N // window,): they make a long loss curve readable."""
    window = max(min(window, len(values)), 1)
    return values[: len(values) // window * window].reshape(-1, window).mean(dim=1)
