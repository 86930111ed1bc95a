"""Dashboards: views of the run folder, never its source.

A dashboard that is absent or fails costs a warning, never a run: every call of one goes through `Dashboard`, which
says once what went wrong and stays silent from then on.

A run may take many sittings, and any of them may be killed between the run folder and the dashboard. So every sitting
tells W&B again what the run folder has recorded, under the epoch as W&B's own step, and W&B keeps one of each.
"""

import os
import shutil
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attnconv.config import Config, to_plain
from attnconv.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Adapter(Protocol):
    """What a dashboard's library must do. All of it may raise."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def picture(self, epoch: int, figure: "Figure") -> None: ...

    def finish(self, failed: bool) -> None: ...


History = list[tuple[int, dict[str, float]]]  # epochs and their metrics


class WandbAdapter:
    """Weights & Biases: online when logged in, else offline, without asking. WANDB_MODE beats both.

    All sittings of a run are one W&B run, whose name is kept in the run folder. Online, W&B drops steps that it has
    seen. Offline there is nobody to do so: this sitting's files, which hold it all, replace those of earlier ones.
    """

    def __init__(self, config: Config, folder: Path, history: History):
        import wandb

        self._wandb = wandb
        if _disabled():
            self._run = wandb.init(mode="disabled")
            print("W&B: disabled", flush=True)
            return
        identity = folder / ".wandb-id"
        if not identity.exists():
            write_whole(identity, uuid.uuid4().hex[:8].encode())
        name = identity.read_text()
        for earlier in (folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(earlier)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=config.logger.project,
            id=name,
            resume="allow",
            name=_run_name(config, folder),
            group=config.model["name"],
            tags=[config.recipe.name, config.scale.name, config.name],
            config=to_plain(config),
            dir=str(folder),
            mode=mode,
            reinit="finish_previous",  # a sweep's jobs share a process, one after the other
            settings=wandb.Settings(silent=True, init_timeout=30),
        )
        where = self._run.url or f"offline in {Path(self._run.dir).parent}; `wandb sync` uploads it"
        print(f"W&B: {where}", flush=True)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        seen = self._run.step  # of earlier sittings, online; 0 for a new run
        for epoch, metrics in history:
            if epoch >= seen:
                self.log(epoch, metrics)

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        # Not W&B's count of calls: the epoch, so that none is counted twice.
        self._run.log({"epoch": epoch, **metrics}, step=epoch)

    def picture(self, epoch: int, figure: "Figure") -> None:
        self._run.log({"heads": self._wandb.Image(_pixels(figure))}, step=epoch)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TrackioAdapter:
    """Trackio: a local dashboard; `trackio show` opens it in a browser."""

    def __init__(self, config: Config, folder: Path, history: History):
        import trackio

        self._trackio = trackio
        # Trackio has neither tags nor groups: the name and the configuration carry both. It goes on with a run of the
        # same name, whose history it keeps.
        name = _run_name(config, folder)
        trackio.init(project=config.logger.project, name=name, config=to_plain(config), resume="allow")

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        self._trackio.log(metrics, step=epoch)

    def picture(self, epoch: int, figure: "Figure") -> None:
        self._trackio.log({"heads": self._trackio.Image(_pixels(figure))}, step=epoch)

    def finish(self, failed: bool) -> None:
        self._trackio.finish()


def _disabled() -> bool:
    """Whether the environment switches W&B off, which then keeps nothing anywhere."""
    switched_off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
    return switched_off or os.environ.get("WANDB_MODE", "").lower() == "disabled"


def _run_name(config: Config, folder: Path) -> str:
    """The run folder without the part that depends on the machine."""
    return folder.relative_to(config.output).as_posix()


def _pixels(figure: "Figure") -> Any:
    """The figure as an RGB array (height, width, 3) uint8."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


ADAPTERS = {"wandb": WandbAdapter, "trackio": TrackioAdapter}


class Dashboard:
    """One dashboard, or none, that cannot stop a run.

    Args:
        shown: False for all but one of several processes.
    """

    def __init__(self, config: Config, folder: Path, history: History, shown: bool = True):
        self._name = config.logger.name
        self._adapter: Adapter | None = None
        if shown and self._name in ADAPTERS:
            self._guard(lambda: setattr(self, "_adapter", ADAPTERS[self._name](config, folder, history)))

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Numbers of one epoch."""
        if self._adapter is not None:
            self._guard(self._adapter.log, epoch, metrics)

    def picture(self, epoch: int, figure: "Figure") -> None:
        """A picture of the heads after one epoch."""
        if self._adapter is not None:
            self._guard(self._adapter.picture, epoch, figure)

    def finish(self, failed: bool) -> None:
        """Close the dashboard's run, so that the next one of a sweep does not write into it."""
        if self._adapter is not None:
            self._guard(self._adapter.finish, failed)

    def _guard(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever a third party's service raises
            adapter, self._adapter = self._adapter, None
            if adapter is not None and call != adapter.finish:
                with suppress(Exception):  # the first error is the one to tell
                    adapter.finish(True)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"warning: {self._name} is off for this run ({reason}); the run folder has it all", file=sys.stderr)
