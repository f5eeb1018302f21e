"""One way to lay a training out, and what it comes to: memory, time of a step, what is lost to waiting.

Every rank of a pipeline pads its micro-batches to the same shapes, so one pipeline is simulated for all. Without a
pipeline the ranks run pack by pack and wait for one another in every layer, so each round lasts as long as its
slowest. Communication of weights is half hidden by computing unless the cluster says otherwise; that of tokens to
experts and of tiles is not hidden at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vl2.config import ModelConfig
from vl2.data.index import Ints
from vl2.data.pack import balance
from vl2.data.pack_plan import tile_bucket
from vl2.plan.cluster import Cluster
from vl2.plan.timeline import Action, Timeline, simulate
from vl2.plan.unit_sizes import SegmentSize, fullest_share, segment_size
from vl2.train.parallel.pipeline_split import Unit, UnitCosts, split_pipeline, units
from vl2.train.parallel.tile_balance import even_counts, imbalance
from vl2.train.recipe import SplitKind

WIDE = 4  # bytes of float32, in which gradients are summed


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """What a recipe's engine says."""

    pipeline: int
    expert_parallel: int
    cut: SplitKind
    balances_tiles: bool = True
    recomputes: bool = True


@dataclass(frozen=True, kw_only=True)
class StepPacks:
    """The packs of one step."""

    tokens: Ints
    tiles: Ints


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by what they are spent on, and the parts of it that are lost."""

    compute_s: float  # of the busiest rank, padding included
    waiting_s: float  # bubbles of pipelines
    experts_s: float
    weights_s: float
    tiles_s: float
    update_s: float
    bubble: float  # of the pipeline's time
    imbalance_before: float  # tiles, busiest rank over the mean, as packs are dealt
    imbalance_after: float
    memory_bytes: float  # of the fullest rank
    timelines: tuple[Timeline, ...]  # image batches, then text

    @property
    def total_s(self) -> float:
        return self.compute_s + self.waiting_s + self.experts_s + self.weights_s + self.tiles_s + self.update_s


def step_time(
    config: ModelConfig, cluster: Cluster, choice: LayoutChoice, costs: UnitCosts, work: StepPacks, *, kept_bytes: float
) -> StepTime:
    """Simulate a step. `costs` are in seconds; `kept_bytes` is what a trained parameter and its optimizer take."""
    planned = _Planned(config, cluster, choice, costs, work, kept_bytes)
    return planned.in_pipeline() if choice.pipeline > 1 else planned.by_rounds()


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """The packs of a step that go through a pipeline together: those with images, or those of text alone."""

    timeline: Timeline
    segments: tuple[int, ...]  # that they go through
    num_batches: int
    tokens: int  # to which all are padded
    tiles: int
    experts_s: float  # of the busiest rank, on the exchange with experts


class _Planned:
    def __init__(
        self,
        config: ModelConfig,
        cluster: Cluster,
        choice: LayoutChoice,
        costs: UnitCosts,
        work: StepPacks,
        kept_bytes: float,
    ) -> None:
        self.config, self.cluster, self.choice, self.costs = config, cluster, choice, costs
        self.kept_bytes = kept_bytes
        self.num_data = cluster.num_gpus // choice.pipeline
        self.fullest_share = fullest_share(config, self.num_data, choice.expert_parallel)
        tokens, tiles = work.tokens.tolist(), work.tiles.tolist()
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

    # A backward pass costs twice the forward, and the forward again where activations are not kept.
    @property
    def ratio(self) -> float:
        return self.costs.backward_ratio + self.choice.recomputes

    def in_pipeline(self) -> StepTime:
        images = [[pack for pack in packs if pack[1]] for packs in self.packs]
        texts = [[pack for pack in packs if not pack[1]] for packs in self.packs]
        kinds = [self._one_kind(kind, is_text) for kind, is_text in ((images, False), (texts, True)) if any(kind)]
        timelines = tuple(kind.timeline for kind in kinds)
        length = sum(timeline.length_s for timeline in timelines)
        busiest = sum(max(timeline.busy_s) for timeline in timelines)
        busy = sum(sum(timeline.busy_s) for timeline in timelines)
        experts = sum(kind.experts_s for kind in kinds)
        held, encoded = self._rounds(images)
        in_flight = [
            max(timeline.most_in_flight(rank) for timeline in timelines) for rank in range(self.split.num_ranks)
        ]
        most = max(kinds, key=lambda kind: kind.tokens * kind.tiles)
        return StepTime(
            compute_s=busiest - experts,
            waiting_s=length - busiest,
            experts_s=experts,
            weights_s=max(self._pipeline_weights_s(rank, kinds) for rank in range(self.split.num_ranks)),
            tiles_s=self._tiles_s(held),
            update_s=self._update_s(),
            bubble=1 - busy / (self.split.num_ranks * length),
            imbalance_before=imbalance(held),
            imbalance_after=imbalance(encoded),
            memory_bytes=max(
                self._memory(rank, in_flight[rank], tokens=most.tokens, tiles=most.tiles)
                + sum(self._received_bytes(rank, kind) for kind in kinds)
                for rank in range(self.split.num_ranks)
            ),
            timelines=timelines,
        )

    def _pipeline_weights_s(self, rank: int, kinds: Sequence[_Kind]) -> float:
        """Return what weights add to a step: each kind gathers those that it runs, and sums their gradients."""
        return sum(self._weights_s(self._rank_size(rank, kind.segments), 1, 1) for kind in kinds)

    def _received_bytes(self, rank: int, kind: _Kind) -> float:
        """Return the room that a rank keeps for what comes from others: activations, and gradients of its own.

        PyTorch has a buffer for every micro-batch of the schedule, from one step to the next.
        """
        last = len(kind.segments) - 1
        borders = 0.0
        for place, number in enumerate(kind.segments):
            if number in self.split.of_rank(rank):
                borders += self._boundary_bytes(kind.segments[place - 1], kind.tiles, kind.tokens) if place else 0.0
                borders += self._boundary_bytes(number, kind.tiles, kind.tokens) if place < last else 0.0
        return kind.num_batches * borders

    def _one_kind(self, packs: Sequence[Sequence[tuple[int, int]]], is_text: bool) -> _Kind:
        ranks = self.split.num_ranks
        count = -(-max(map(len, packs)) // ranks) * ranks
        longest = max(tokens for rank in packs for tokens, _ in rank)
        tiles = 0 if is_text and self.split.is_looped else 1 if is_text else self._padded_tiles(packs)
        chosen = self.split.text_segments if is_text else tuple(range(len(self.split.segments)))
        exchange = self._exchange_s(longest)
        seconds, exchanges = [], []
        for number in chosen:
            segment = self.split.segments[number]
            exchanges.append(exchange * sum(self._is_moe(unit) for unit in segment))
            cost = self.costs.forward(segment, self.config, tiles=tiles, tokens=longest)
            seconds.append(sum(cost) + exchanges[-1])

        def duration_s(action: Action) -> float:
            return seconds[action.segment] * (1.0 if action.direction == "forward" else self.ratio)

        timeline = simulate(
            ranks,
            len(chosen),
            count,
            duration_s=duration_s,
            transfer_s=lambda action: self._boundary_s(chosen[action.segment], tiles, longest),
        )
        per_rank = [sum(exchanges[i] for i in range(rank, len(chosen), ranks)) for rank in range(ranks)]
        return _Kind(
            timeline=timeline,
            segments=chosen,
            num_batches=count,
            tokens=longest,
            tiles=tiles,
            experts_s=count * max(per_rank) * (1 + self.ratio),
        )

    def _padded_tiles(self, packs: Sequence[Sequence[tuple[int, int]]]) -> int:
        held, encoded = self._rounds(packs)
        rounds = encoded if self.choice.balances_tiles else held
        return tile_bucket(max(max(counts) for counts in rounds))

    def _rounds(
        self, packs: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the tiles that each rank has in every round, and those that it encodes."""
        most = max(map(len, packs))
        held = [tuple(rank[turn][1] if turn < len(rank) else 0 for rank in packs) for turn in range(most)]
        if not self.choice.balances_tiles:
            return held, held
        return held, [tuple(even_counts(counts)) for counts in held]

    def by_rounds(self) -> StepTime:
        """Every rank runs its packs one after another; all wait for the slowest in each."""
        held, encoded = self._rounds(self.packs)
        # What is balanced together is a whole step's packs where tiles are balanced: see `balance_tiles`.
        if self.choice.balances_tiles:
            held = [tuple(map(sum, zip(*held, strict=True)))]
            encoded = [tuple(even_counts(held[0]))]
        compute = experts = 0.0
        visual = [unit for unit in self.row if unit.is_visual]
        text = [unit for unit in self.row if not unit.is_visual]
        num_moe = sum(self._is_moe(unit) for unit in text)
        factor = 1 + self.ratio
        num_rounds = max(map(len, self.packs))
        for turn in range(num_rounds):
            longest = max(rank[turn][0] for rank in self.packs if turn < len(rank))
            compute += factor * sum(self.costs.forward(text, self.config, tiles=0, tokens=longest))
            experts += factor * num_moe * self._exchange_s(longest)
        for counts in encoded:
            compute += factor * sum(self.costs.forward(visual, self.config, tiles=max(max(counts), 1), tokens=0))
        size = self._rank_size(0)
        return StepTime(
            compute_s=compute,
            waiting_s=0.0,
            experts_s=experts,
            weights_s=self._weights_s(size, 2 * num_rounds, num_rounds),
            tiles_s=self._tiles_s(held),
            update_s=self._update_s(),
            bubble=0.0,
            imbalance_before=imbalance(held),
            imbalance_after=imbalance(encoded),
            memory_bytes=self._memory(
                0, 1, tokens=max(t for rank in self.packs for t, _ in rank), tiles=max(map(max, encoded))
            ),
            timelines=(),
        )

    def _is_moe(self, unit: Unit) -> bool:
        return unit.kind == "layer" and self.config.language_config.is_moe_layer(unit.index)

    def _rank_size(self, rank: int, segments: Sequence[int] | None = None) -> SegmentSize:
        """Return the size of what a rank holds, or of what it holds of some segments."""
        own = [self.sizes[number] for number in self.split.of_rank(rank) if segments is None or number in segments]
        return SegmentSize(
            dense=sum(size.dense for size in own),
            experts=sum(size.experts for size in own),
            num_blocks=sum(size.num_blocks for size in own),
            num_layers=sum(size.num_layers for size in own),
        )

    def _exchange_s(self, tokens: int) -> float:
        """Return the seconds in which the tokens of a pack go to their experts and back, one way of the pass."""
        ranks, language = self.choice.expert_parallel, self.config.language_config
        if ranks == 1:
            return 0.0
        slots = tokens * (language.num_experts_per_tok or 0) * (ranks - 1) / ranks
        num_bytes = 2 * slots * language.hidden_size * self.cluster.value_bytes
        return num_bytes / self.cluster.bandwidth(ranks) + 3 * self.cluster.latency_s

    def _weights_s(self, size: SegmentSize, gathers: int, sums: int) -> float:
        """Return what gathering weights and summing gradients adds to a step; experts travel among their replicas."""
        seconds = 0.0
        replicas = self.num_data // self.choice.expert_parallel
        # Parts travel padded to the fullest.
        experts = size.experts * self.fullest_share * replicas
        for parameters, ranks in ((size.dense, self.num_data), (experts, replicas)):
            if ranks > 1:
                share = parameters * (ranks - 1) / ranks
                bandwidth = self.cluster.bandwidth(self.num_data) * self.cluster.weights_efficiency
                seconds += share * (gathers * self.cluster.value_bytes + sums * WIDE) / bandwidth
        return seconds * (1 - self.cluster.overlap)

    def _tiles_s(self, held: Sequence[tuple[int, ...]]) -> float:
        """Return what the tiles that move add: pixels there, tokens back, and the gradients of these."""
        if not self.choice.balances_tiles:
            return 0.0
        pixels = 3 * self.config.siglip.image_size**2 * self.cluster.value_bytes
        tokens = self.config.tokens_per_side**2 * self.config.projector_config.n_embed * self.cluster.value_bytes
        busiest = 0
        for counts in held:
            busiest += max(abs(after - before) for before, after in zip(counts, even_counts(counts), strict=True))
        return busiest * (pixels + 2 * tokens) / self.cluster.bandwidth(self.num_data)

    def _update_s(self) -> float:
        sizes = [self._rank_size(rank) for rank in range(self.split.num_ranks)]
        return max(size.dense / self.num_data + size.experts * self.fullest_share for size in sizes) * self.costs.update

    def _boundary_s(self, number: int, tiles: int, tokens: int) -> float:
        num_bytes = self._boundary_bytes(number, tiles, tokens)
        return num_bytes / self.cluster.bandwidth(self.cluster.num_gpus) + self.cluster.latency_s

    def _boundary_bytes(self, number: int, tiles: int, tokens: int) -> float:
        """Return the bytes that a segment sends on of one micro-batch."""
        last = self.split.segments[number][-1].kind
        vision, width = self.config.siglip, self.config.language_config.hidden_size
        if last == "block":
            values = tiles * vision.patches_per_side**2 * vision.width
        elif last == "projector":
            values = tiles * self.config.tokens_per_side**2 * self.config.projector_config.n_embed
        else:
            values = tokens * width
        return values * self.cluster.value_bytes

    def _memory(self, rank: int, in_flight: int, *, tokens: int, tiles: int) -> float:
        """Return the bytes of one rank: its parts, what it has gathered, and the activations kept."""
        size = self._rank_size(rank)
        language, vision = self.config.language_config, self.config.siglip
        own_experts = size.experts / self.choice.expert_parallel
        parts = self.kept_bytes * (size.dense / self.num_data + size.experts * self.fullest_share)
        # In a pipeline all layers of a rank stay gathered, and their gradients are summed over the step before they go.
        is_whole = self.choice.pipeline > 1
        largest = max((size.dense + own_experts) / max(size.num_layers + size.num_blocks, 1), 1)
        root = 2 * language.vocab_size * language.hidden_size
        gathered = (
            (size.dense + own_experts) * (self.cluster.value_bytes + WIDE)
            if is_whole
            else (2 * largest + root) * (self.cluster.value_bytes + WIDE)
        )
        of_layer, of_block = (
            tokens * language.hidden_size * self.cluster.value_bytes,
            (tiles * vision.patches_per_side**2 * vision.width * self.cluster.value_bytes),
        )
        inside = 30.0  # activations of a layer that is computed again, over its input
        kept = in_flight * (size.num_layers * of_layer + size.num_blocks * of_block) / max(self.split.loops, 1)
        if not self.choice.recomputes:
            kept *= inside
        return parts + gathered + kept + inside * max(of_layer, of_block)
