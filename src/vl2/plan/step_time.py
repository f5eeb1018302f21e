"""Simulate one training step with a given parallel layout: its time, its parts, and the memory of a GPU.

All pipelines pad their micro-batches to the same shapes, so one pipeline is simulated for all. Without a pipeline the
ranks process their packs one by one and synchronize in every layer, so each round takes as long as its slowest rank.
`Cluster.overlap` is the share of the communication of weights that overlaps with computation. Exchanging tokens with
experts, summing the parts of divided layers and moving tiles between ranks do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from vl2.config import ModelConfig
from vl2.data.index import Ints
from vl2.data.pack import balance
from vl2.data.pack_plan import tile_bucket
from vl2.plan.cluster import Cluster
from vl2.plan.timeline import Direction, Timeline, max_in_flight, simulate
from vl2.plan.unit_sizes import SegmentSize, largest_expert_share, segment_size
from vl2.train.activations import block_values, layer_values
from vl2.train.parallel.pipeline_split import Unit, UnitCosts, split_pipeline, units
from vl2.train.parallel.tile_balance import even_counts, imbalance
from vl2.train.recipe import SplitKind

GRADIENT_BYTES = 4  # gradients are reduced in float32


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A parallel layout, with the meaning of the keys in a recipe's [engine] section."""

    pipeline: int
    expert_parallel: int
    cut: SplitKind
    tensor_parallel: int = 1
    balances_tiles: bool = True
    recomputes: bool = True  # decoder layers and vision blocks
    recomputes_encoder: bool = False  # vision blocks, if not all are

    def recomputes_unit(self, unit: Unit) -> bool:
        return self.recomputes or (self.recomputes_encoder and unit.kind == "block")


@dataclass(frozen=True, kw_only=True)
class StepPacks:
    """The packs of one step."""

    tokens: Ints  # of each pack
    tiles: Ints  # of each pack


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The seconds of a step by activity, with the losses to bubbles and imbalance."""

    compute_s: float  # of the busiest rank, padding included
    waiting_s: float  # pipeline bubbles
    experts_s: float  # exchanging tokens with experts
    sums_s: float  # summing the parts of divided layers over tensor-parallel ranks
    weights_s: float  # gathering weights and reducing gradients
    tiles_s: float  # moving tiles between ranks
    update_s: float  # optimizer
    bubble: float  # share of the pipeline's time
    imbalance_before: float  # tiles of the busiest rank over the mean, before balancing
    imbalance_after: float  # the same after balancing
    memory_bytes: float  # of the rank that needs most
    timelines: tuple[Timeline, ...]  # of packs with images, then of text-only packs; empty without a pipeline

    @property
    def total_s(self) -> float:
        communication = self.experts_s + self.sums_s + self.weights_s + self.tiles_s
        return self.compute_s + self.waiting_s + communication + self.update_s


def step_time(
    config: ModelConfig,
    cluster: Cluster,
    choice: LayoutChoice,
    costs: UnitCosts,
    packs: StepPacks,
    *,
    bytes_per_parameter: float,
) -> StepTime:
    """Simulate a step. `costs` are in seconds; `bytes_per_parameter` includes the optimizer state."""
    return StepSimulation(config, cluster, choice, costs, packs, bytes_per_parameter).run()


@dataclass(frozen=True, kw_only=True)
class _WorkTime:
    """The seconds of a unit or a segment, by what they are spent on."""

    compute: float
    experts: float
    sums: float

    @property
    def total(self) -> float:
        return self.compute + self.experts + self.sums

    @staticmethod
    def of_all(times: Sequence[_WorkTime], repeats: int = 1) -> _WorkTime:
        """Return the sum of several, `repeats` times over."""
        return _WorkTime(
            compute=repeats * sum(time.compute for time in times),
            experts=repeats * sum(time.experts for time in times),
            sums=repeats * sum(time.sums for time in times),
        )


@dataclass(frozen=True, kw_only=True)
class _PipelineRun:
    """One run of the pipeline in a step. There is one for packs with images and one for text-only packs."""

    num_ranks: int
    segments: tuple[int, ...]  # the pipeline segments that the packs pass through
    num_batches: int
    tokens: int  # padded tokens of every micro-batch
    tiles: int  # padded tiles of every micro-batch
    times: Mapping[tuple[int, Direction], _WorkTime]  # by position in `segments`, of one micro-batch

    def busy_s(self, rank: int) -> _WorkTime:
        """Return the seconds that a rank works in this run."""
        own = [time for (place, _), time in self.times.items() if place % self.num_ranks == rank]
        return _WorkTime.of_all(own, self.num_batches)

    def in_flight(self, rank: int) -> int:
        return max_in_flight(self.num_ranks, len(self.segments), self.num_batches, rank)

    @property
    def least_s(self) -> float:
        """Return a lower bound of the run's length.

        Before a rank's first action a micro-batch goes forward through all ranks before it, and after its last action
        one goes backward through them.
        """
        outside, least = 0.0, 0.0
        for rank in range(self.num_ranks):
            least = max(least, self.busy_s(rank).total + outside)
            outside += self.times[rank, "forward"].total + self.times[rank, "backward"].total
        return least


class StepSimulation:
    """The simulation of one step. The packs are distributed over the data ranks when it is made."""

    def __init__(
        self,
        config: ModelConfig,
        cluster: Cluster,
        choice: LayoutChoice,
        costs: UnitCosts,
        packs: StepPacks,
        bytes_per_parameter: float,
    ) -> None:
        self.config, self.cluster, self.choice, self.costs = config, cluster, choice, costs
        self.bytes_per_parameter = bytes_per_parameter
        self.num_stage = cluster.num_gpus // choice.pipeline  # ranks with the same layers
        self.num_data = self.num_stage // choice.tensor_parallel  # those of them with different packs
        self.largest_expert_share = largest_expert_share(config, self.num_stage, choice.expert_parallel)
        tokens, tiles = packs.tokens.tolist(), packs.tiles.tolist()
        dealt = balance(tiles, tokens, self.num_data)
        self.packs = [[(tokens[i], tiles[i]) for i in rank] for rank in dealt]
        self.row = units(config)
        visual = [count for count in tiles if count] or [0]
        self.split = split_pipeline(
            choice.cut,
            self.row,
            costs.forward(self.row, config, tiles=sum(visual) / len(visual), tokens=sum(tokens) / max(len(tokens), 1)),
            choice.pipeline,
        )
        self.sizes = [segment_size(config, segment) for segment in self.split.segments]
        self.packs_with_images = [[pack for pack in rank if pack[1]] for rank in self.packs]
        texts = [[pack for pack in rank if not pack[1]] for rank in self.packs]
        parts = ((self.packs_with_images, False), (texts, True))
        self.runs = [self._pipeline_run(part, is_text) for part, is_text in parts if choice.pipeline > 1 and any(part)]

    def run(self) -> StepTime:
        return self.in_pipeline() if self.choice.pipeline > 1 else self.by_rounds()

    def least_s(self) -> float:
        """Return a lower bound of the step's seconds. With a pipeline it takes far less time than the simulation."""
        if self.choice.pipeline == 1:
            return self.by_rounds().total_s
        held, _ = self._rounds(self.packs_with_images)
        return (
            sum(run.least_s for run in self.runs) + self._pipeline_weights_s() + self._tiles_s(held) + self._update_s()
        )

    def _unit_s(self, unit: Unit, direction: Direction, *, tiles: int, tokens: int) -> _WorkTime:
        """Return the seconds of a unit for a micro-batch.

        Tensor-parallel ranks divide the tiles and the work of all tokens. A backward pass sends as much as a forward
        pass, and what is recomputed is sent again.
        """
        size, is_again = self.choice.tensor_parallel, self.choice.recomputes_unit(unit)
        forward = self.costs.forward([unit], self.config, tiles=-(-tiles // size), tokens=tokens / size)[0]
        experts = self._exchange_s(tokens) if self._is_moe(unit) else 0.0
        sums = self._sums_s(tokens, is_moe=self._is_moe(unit)) if unit.kind == "layer" else 0.0
        compute, sent = (1.0, 1) if direction == "forward" else (self.costs.backward_ratio + is_again, 1 + is_again)
        return _WorkTime(compute=forward * compute, experts=experts * sent, sums=sums * sent)

    def in_pipeline(self) -> StepTime:
        """Simulate a step with a pipeline."""
        timelines = tuple(map(self._simulate, self.runs))
        length = sum(timeline.length_s for timeline in timelines)
        busiest = sum(max(timeline.busy_s) for timeline in timelines)
        busy = sum(sum(timeline.busy_s) for timeline in timelines)
        ranks = range(self.split.num_ranks)
        experts = sum(max(run.busy_s(rank).experts for rank in ranks) for run in self.runs)
        sums = sum(max(run.busy_s(rank).sums for rank in ranks) for run in self.runs)
        held, encoded = self._rounds(self.packs_with_images)
        return StepTime(
            compute_s=busiest - experts - sums,
            waiting_s=length - busiest,
            experts_s=experts,
            sums_s=sums,
            weights_s=self._pipeline_weights_s(),
            tiles_s=self._tiles_s(held),
            update_s=self._update_s(),
            bubble=1 - busy / (self.split.num_ranks * length),
            imbalance_before=imbalance(held),
            imbalance_after=imbalance(encoded),
            memory_bytes=self.memory_bytes(),
            timelines=timelines,
        )

    def _pipeline_weights_s(self) -> float:
        """Return the seconds for weights. Each run gathers the weights of its segments and reduces their gradients."""
        return max(
            sum(self._weights_s(self._rank_size(rank, run.segments), 1, 1) for run in self.runs)
            for rank in range(self.split.num_ranks)
        )

    def _received_bytes(self, rank: int, run: _PipelineRun) -> float:
        """Return the bytes of a rank's receive buffers for activations and for the gradients of its outputs.

        PyTorch keeps a buffer for every micro-batch of the schedule, from one step to the next.
        """
        last = len(run.segments) - 1
        boundaries = 0.0
        for position, number in enumerate(run.segments):
            if number in self.split.of_rank(rank):
                if position:
                    boundaries += self._boundary_bytes(run.segments[position - 1], run.tiles, run.tokens)
                if position < last:
                    boundaries += self._boundary_bytes(number, run.tiles, run.tokens)
        return run.num_batches * boundaries

    def _pipeline_run(self, packs: Sequence[Sequence[tuple[int, int]]], is_text: bool) -> _PipelineRun:
        """Return the run of the pipeline for packs (tokens, tiles) of each data rank."""
        ranks = self.split.num_ranks
        count = -(-max(map(len, packs)) // ranks) * ranks  # micro-batches, a multiple of the pipeline's ranks
        longest = max(tokens for rank in packs for tokens, _ in rank)
        tiles = 0 if is_text and self.split.is_looped else 1 if is_text else self._padded_tiles(packs)
        chosen = self.split.text_segments if is_text else tuple(range(len(self.split.segments)))
        directions: tuple[Direction, ...] = ("forward", "backward")
        times = {
            (place, direction): _WorkTime.of_all(
                [self._unit_s(unit, direction, tiles=tiles, tokens=longest) for unit in self.split.segments[number]]
            )
            for place, number in enumerate(chosen)
            for direction in directions
        }
        return _PipelineRun(
            num_ranks=ranks, segments=chosen, num_batches=count, tokens=longest, tiles=tiles, times=times
        )

    def _simulate(self, run: _PipelineRun) -> Timeline:
        durations = {key: time.total for key, time in run.times.items()}
        return simulate(
            run.num_ranks,
            len(run.segments),
            run.num_batches,
            duration_s=lambda action: durations[action.segment, action.direction],
            transfer_s=lambda place: self._boundary_s(run.segments[place], run.tiles, run.tokens),
        )

    def _padded_tiles(self, packs: Sequence[Sequence[tuple[int, int]]]) -> int:
        held, encoded = self._rounds(packs)
        rounds = encoded if self.choice.balances_tiles else held
        return tile_bucket(max(max(counts) for counts in rounds))

    def _rounds(
        self, packs: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the tiles of each rank in every round, before and after balancing."""
        most = max(map(len, packs))
        held = [tuple(rank[turn][1] if turn < len(rank) else 0 for rank in packs) for turn in range(most)]
        if not self.choice.balances_tiles:
            return held, held
        return held, [tuple(even_counts(counts)) for counts in held]

    def _rounds_without_pipeline(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the tiles of each rank in every round. Balancing works on all packs together: see `balance_tiles`."""
        held, encoded = self._rounds(self.packs)
        if self.choice.balances_tiles:
            held = [tuple(map(sum, zip(*held, strict=True)))]
            encoded = [tuple(even_counts(held[0]))]
        return held, encoded

    def by_rounds(self) -> StepTime:
        """Simulate a step without a pipeline: in each round every rank processes one pack and waits for the slowest."""
        held, encoded = self._rounds_without_pipeline()
        times: list[_WorkTime] = []
        directions: tuple[Direction, ...] = ("forward", "backward")
        num_rounds = max(map(len, self.packs))
        longest = [max(rank[turn][0] for rank in self.packs if turn < len(rank)) for turn in range(num_rounds)]
        most = [max(max(counts), 1) for counts in encoded]
        for unit, direction in product(self.row, directions):
            if unit.is_visual:
                times += [self._unit_s(unit, direction, tiles=tiles, tokens=0) for tiles in most]
            else:
                times += [self._unit_s(unit, direction, tiles=0, tokens=tokens) for tokens in longest]
        size = self._rank_size(0)
        return StepTime(
            compute_s=sum(time.compute for time in times),
            waiting_s=0.0,
            experts_s=sum(time.experts for time in times),
            sums_s=sum(time.sums for time in times),
            weights_s=self._weights_s(size, 2 * num_rounds, num_rounds),
            tiles_s=self._tiles_s(held),
            update_s=self._update_s(),
            bubble=0.0,
            imbalance_before=imbalance(held),
            imbalance_after=imbalance(encoded),
            memory_bytes=self.memory_bytes(),
            timelines=(),
        )

    def _is_moe(self, unit: Unit) -> bool:
        return unit.kind == "layer" and self.config.language_config.is_moe_layer(unit.index)

    def _rank_size(self, rank: int, segments: Sequence[int] | None = None) -> SegmentSize:
        """Return the total size of a rank's segments, or of those of them that are in `segments`."""
        own = [self.sizes[number] for number in self.split.of_rank(rank) if segments is None or number in segments]
        return SegmentSize(
            dense=sum(size.dense for size in own),
            experts=sum(size.experts for size in own),
            num_blocks=sum(size.num_blocks for size in own),
            num_layers=sum(size.num_layers for size in own),
        )

    def _exchange_s(self, tokens: int) -> float:
        """Return the seconds to send a pack's tokens to their experts and back, in one MoE layer of a forward pass."""
        ranks, language = self.choice.expert_parallel, self.config.language_config
        if ranks == 1:
            return 0.0
        slots = tokens / self.choice.tensor_parallel * (language.num_experts_per_tok or 0) * (ranks - 1) / ranks
        num_bytes = 2 * slots * language.hidden_size * self.cluster.value_bytes
        return num_bytes / self.cluster.bandwidth(ranks) + 3 * self.cluster.latency_s

    def _sums_s(self, tokens: int, *, is_moe: bool) -> float:
        """Return the seconds to sum the parts of one decoder layer over tensor-parallel ranks, in a forward pass.

        A sum over n ranks sends 2 (n - 1) / n of the states. There is one for attention and one for the dense layer or
        the shared experts; the outputs of routed experts are gathered, which sends half as much.
        """
        size = self.choice.tensor_parallel
        if size == 1:
            return 0.0
        states = tokens * self.config.language_config.hidden_size * self.cluster.value_bytes * (size - 1) / size
        num_sent, num_messages = 4 + is_moe, 2 + is_moe
        return num_sent * states / self.cluster.bandwidth(size) + num_messages * 2 * size * self.cluster.latency_s

    def _weights_s(self, size: SegmentSize, gathers: int, reductions: int) -> float:
        """Return the seconds for gathering weights and reducing gradients that do not overlap with computation.

        Experts are sharded over their replicas, the other weights over all ranks with the same layers. Divided layers
        are counted whole, so with tensor parallelism this is an upper bound.
        """
        seconds = 0.0
        replicas = self.num_stage // self.choice.expert_parallel
        # Shards are padded to the largest one when they are sent.
        experts = size.experts * self.largest_expert_share * replicas
        for parameters, ranks in ((size.dense, self.num_stage), (experts, replicas)):
            if ranks > 1:
                share = parameters * (ranks - 1) / ranks
                bandwidth = self.cluster.bandwidth(self.num_stage) * self.cluster.weights_efficiency
                seconds += share * (gathers * self.cluster.value_bytes + reductions * GRADIENT_BYTES) / bandwidth
        return seconds * (1 - self.cluster.overlap)

    def _tiles_s(self, held: Sequence[tuple[int, ...]]) -> float:
        """Return the seconds to move tiles for balancing: pixels there, visual tokens back, and their gradients."""
        if not self.choice.balances_tiles:
            return 0.0
        pixels = 3 * self.config.siglip.image_size**2 * self.cluster.value_bytes
        tokens = self.config.tokens_per_side**2 * self.config.projector_config.n_embed * self.cluster.value_bytes
        busiest = 0
        for counts in held:
            busiest += max(abs(after - before) for before, after in zip(counts, even_counts(counts), strict=True))
        return busiest * (pixels + 2 * tokens) / self.cluster.bandwidth(self.num_stage)

    def _update_s(self) -> float:
        sizes = [self._rank_size(rank) for rank in range(self.split.num_ranks)]
        return (
            max(size.dense / self.num_stage + size.experts * self.largest_expert_share for size in sizes)
            * self.costs.update
        )

    def _boundary_s(self, number: int, tiles: int, tokens: int) -> float:
        num_bytes = self._boundary_bytes(number, tiles, tokens)
        return num_bytes / self.cluster.bandwidth(self.cluster.num_gpus) + self.cluster.latency_s

    def _boundary_bytes(self, number: int, tiles: int, tokens: int) -> float:
        """Return the bytes that a segment sends to the next one for a micro-batch."""
        last = self.split.segments[number][-1].kind
        vision, width = self.config.siglip, self.config.language_config.hidden_size
        if last == "block":
            values = tiles * vision.patches_per_side**2 * vision.width
        elif last == "projector":
            values = tiles * self.config.tokens_per_side**2 * self.config.projector_config.n_embed
        else:
            values = tokens * width
        return values * self.cluster.value_bytes

    def memory_bytes(self) -> float:
        """Return the memory of the rank that needs most. It does not take a simulation."""
        if self.choice.pipeline == 1:
            _, encoded = self._rounds_without_pipeline()
            tokens = max(tokens for rank in self.packs for tokens, _ in rank)
            return self._memory(0, 1, tokens=tokens, tiles=max(map(max, encoded)))
        largest = max(self.runs, key=lambda run: run.tokens * run.tiles)
        return max(
            self._memory(
                rank, max(run.in_flight(rank) for run in self.runs), tokens=largest.tokens, tiles=largest.tiles
            )
            + sum(self._received_bytes(rank, run) for run in self.runs)
            for rank in range(self.split.num_ranks)
        )

    def _memory(self, rank: int, in_flight: int, *, tokens: int, tiles: int) -> float:
        """Return the memory of a rank: its shards with optimizer state, gathered weights, and stored activations."""
        size = self._rank_size(rank)
        language, vision = self.config.language_config, self.config.siglip
        own_experts = size.experts / self.choice.expert_parallel
        parts = self.bytes_per_parameter * (size.dense / self.num_stage + size.experts * self.largest_expert_share)
        # In a pipeline the weights of all layers of a rank stay gathered during the step, and so do their gradients.
        is_whole = self.choice.pipeline > 1
        largest = max((size.dense + own_experts) / max(size.num_layers + size.num_blocks, 1), 1)
        root = 2 * language.vocab_size * language.hidden_size
        gathered = (
            (size.dense + own_experts) * (self.cluster.value_bytes + GRADIENT_BYTES)
            if is_whole
            else (2 * largest + root) * (self.cluster.value_bytes + GRADIENT_BYTES)
        )
        # Tensor-parallel ranks divide the tiles and the inside of decoder layers, but not the inputs of the layers.
        divided = self.choice.tensor_parallel
        patches = -(-tiles // divided) * vision.patches_per_side**2
        inside_layer = tokens * layer_values(language, is_moe=bool(language.n_routed_experts)) / divided
        inside_block = patches * block_values(vision)
        of_layer = tokens * language.hidden_size if self.choice.recomputes else inside_layer
        is_light = self.choice.recomputes or self.choice.recomputes_encoder
        of_block = patches * vision.width if is_light else inside_block
        kept = in_flight * (size.num_layers * of_layer + size.num_blocks * of_block) / max(self.split.loops, 1)
        return parts + gathered + (kept + max(inside_layer, inside_block)) * self.cluster.value_bytes
