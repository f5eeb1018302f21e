"""The first rank: it runs the whole model but the other ranks' experts, and tells the other ranks what to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from vl2.checkpoint import LoadOptions, load_model
from vl2.checkpoint.expert_share import ExpertShare, expert_stacks
from vl2.checkpoint.folder import Progress
from vl2.config import ModelConfig
from vl2.errors import RankLost, UserError
from vl2.expert_parallel.layer import agree, describe_failure, run_layer
from vl2.expert_parallel.messages import MAX_EXPERTS, Kind, LoadRequest, Message, send
from vl2.model import VL2
from vl2.runtime.gpu_modules import fast_experts
from vl2.train.ranks import Ranks, why_lost

HEARTBEAT_S = 10.0  # interval between messages while there is nothing to do, so that waiting ranks do not time out


class Leader:
    """Loads the model over all ranks and runs its experts there. Any thread may run the model, one at a time.

    After a failure of another rank every call raises RankLost: the process should end.
    """

    def __init__(self, ranks: Ranks, *, on_failure: Callable[[RankLost], None] | None = None) -> None:
        """Start to send heartbeats. `on_failure` is called once, in the thread that notices a failure.

        The other ranks must call `follow`. Call `stop` at the end.
        """
        assert ranks.is_first, f"rank {ranks.rank} follows"
        self.ranks, self.on_failure = ranks, on_failure
        self._lock = threading.Lock()
        self._lost: RankLost | None = None
        self._last = time.monotonic()
        self._is_over = threading.Event()
        self._heartbeats = threading.Thread(target=self._send_heartbeats, name="vl2-heartbeats", daemon=True)
        self._heartbeats.start()

    def load(self, folder: Path, options: LoadOptions, progress: Progress | None = None) -> VL2:
        """Return the model of a checkpoint folder, with its experts divided among the ranks.

        Raise UserError for what `load_model` refuses, and if a rank cannot load its share.
        """
        check_experts(ModelConfig.from_file(folder / "config.json"), self.ranks.size)
        share = ExpertShare(rank=0, size=self.ranks.size, only_experts=False)
        options = replace(options, experts=share)
        with self._together():
            send(self.ranks, Message(kind=Kind.LOAD))
            self.ranks.broadcast_object(
                LoadRequest(folder=folder.absolute(), dtype=options.dtype, weights=options.weights)
            )
            failure: str | None = None
            try:
                model = load_model(folder, options, progress)
            except UserError as error:
                failure = str(error)
            except Exception as error:  # whatever it is, the other ranks must not wait for this one
                failure = describe_failure(self.ranks, error)
            agree(self.ranks, failure)
        split_experts(model, self)
        return model

    def run(self, layer: int, experts: nn.Module, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Run all experts of a MoE layer on rows that are sorted by expert, [N, D]. `experts` are this rank's."""
        with self._together():
            counts = counts_E.tolist()
            send(self.ranks, Message(kind=Kind.RUN, layer=layer, counts=counts))
            return run_layer(self.ranks, experts, x_ND, counts)

    def stop(self) -> None:
        """Let the other ranks end. Do nothing after a failure: they have ended then, or cannot be told."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        if self._lost is None:
            with self._together():
                send(self.ranks, Message(kind=Kind.STOP))

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Let one thread at a time talk to the other ranks. An error in between ends that for good."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            try:
                yield
                self._last = time.monotonic()
            except BaseException as error:
                # The other ranks may wait in the middle of an exchange, so no message would reach them.
                why = why_lost(error)
                self._lost = error if isinstance(error, RankLost) else RankLost(why or "the exchange was interrupted")
                if self.on_failure is not None and (why is not None or isinstance(error, RankLost)):
                    self.on_failure(self._lost)
                if why is not None and not isinstance(error, RankLost):
                    raise self._lost from error
                raise

    def _send_heartbeats(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S / 2):
            if time.monotonic() - self._last >= HEARTBEAT_S:
                try:
                    with self._together():
                        if not self._is_over.is_set():
                            send(self.ranks, Message(kind=Kind.IDLE))
                except Exception:
                    return  # the failure is kept, and has been passed on


class SplitExperts(nn.Module):
    """The experts of one layer, of which this process holds a part, in the place of the whole stack."""

    def __init__(self, own: nn.Module, layer: int, leader: Leader) -> None:
        super().__init__()
        self.own, self._layer, self._leader = own, layer, leader

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        return self._leader.run(self._layer, self.own, x_ND, counts_E)


def split_experts(model: VL2, leader: Leader) -> None:
    """Replace the stacks of experts of a model by ones that run over all ranks, in place."""
    for layer, (name, experts) in enumerate(list(expert_stacks(model))):
        model.set_submodule(name, SplitExperts(fast_experts(experts), layer, leader))


def check_experts(config: ModelConfig, num_ranks: int) -> None:
    """Raise UserError unless every rank gets an expert."""
    num_experts = config.language_config.n_routed_experts
    if num_experts is None:
        raise UserError("the model has no routed experts to divide among processes: start one process")
    if not num_ranks <= num_experts <= MAX_EXPERTS:
        raise UserError(f"the model has {num_experts} experts in a layer, which {num_ranks} processes cannot divide")
