"""`vl2 bench`: targets take turns, shares and ratios follow from the runs, failures are one line."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.devices import CPU_AND_CARD, CPU_AND_CARD_WITH_GRAPHS
from tests.model.configs import small_config, small_model
from tests.runtime.recording import count_recordings
from vl2.bench import measure as bench_run
from vl2.bench import ours as our_side
from vl2.bench.machine_limits import MachineLimits, measure_machine, model_matmuls
from vl2.bench.measure import SpeedComparison, TargetResults, compare, print_report, to_dict
from vl2.bench.protocol import make_image, random_ids
from vl2.bench.stages import (
    BenchStage,
    ComputeTypes,
    ModelBytes,
    Sizes,
    StageWork,
    decode_work,
    encode_work,
    load_stage,
    make_stages,
    prefill_work,
    visited_share,
)
from vl2.bench.target import Target, peer_command
from vl2.checkpoint import LoadOptions, in_place, load_model, save_model
from vl2.checkpoint.pages import MAPPINGS
from vl2.checkpoint.random_checkpoint import random_checkpoint, write_random_checkpoint
from vl2.checkpoint.resolve import built_in_folder
from vl2.cli.main import run
from vl2.config import preset
from vl2.errors import UserError
from vl2.infer.vlm import load
from vl2.process.processor import Processor
from vl2.quant import quantized_matmul
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model

FAKE = [sys.executable, str(Path(__file__).parent / "fake_peer.py")]
LOAD = {"do": "load", "model": "none", "dtype": "auto", "weights": "auto", "device": "cpu", "threads": 1}


def machine(read: float = 1e9, rate: float = 1e12) -> MachineLimits:
    products = {"float32": {"a": rate / 4, "b": rate}}
    return MachineLimits(
        device="cpu", threads=1, read_bytes_per_s=read, first_write_bytes_per_s=read / 8, products=products
    )


@pytest.fixture
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take limits as given, and no rests: where it is not about figures."""
    monkeypatch.setattr(bench_run, "measure_machine", lambda config, device, **known: machine())
    monkeypatch.setattr(bench_run, "SETTLE_S", 0.0)


@pytest.fixture
def _no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "SETTLE_S", 0.0)


@pytest.mark.usefixtures("_no_rests")
def test_the_command_measures_itself_and_a_peer_and_writes_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    flags = ["--quick", "--threads", "1", "--rounds", "2", "--only", "prefill", "--only", "encode", "--only", "memory"]
    assert run(["bench", *flags, "--out", str(out), "--against", shlex.join(FAKE)]) == 0
    table = capsys.readouterr().out
    assert "fake 1.0" in table
    assert "GB/s" in table
    result = json.loads(out.read_text())
    assert [c["name"] for c in result["contestants"]][1] == "fake 1.0"
    stages = {stage["name"]: stage for stage in result["stages"]}
    assert set(stages) == {"load", "encode, 1 tiles", "prefill, 256 tokens", "peak memory"}
    prefill = stages["prefill, 256 tokens"]
    ours, theirs = prefill["figures"].values()
    assert theirs == [128.0, 128.0]
    assert len(ours) == 2
    assert prefill["peer_over_ours"]["fake 1.0"]["rounds"] == pytest.approx([128 / run for run in ours])
    assert 0 < prefill["share_of_limit"] < 1.5
    assert stages["encode, 1 tiles"]["unsupported"] == {"fake 1.0": "it sees nothing"}
    assert stages["peak memory"]["figures"]["fake 1.0"][0] < next(iter(stages["peak memory"]["figures"].values()))[0]
    assert result["machine"]["products_gop_per_s"]["int8"]


@pytest.mark.usefixtures("_no_rests")
def test_every_stage_runs_on_the_built_in_model() -> None:
    from vl2.bench.target import OURS

    sizes = Sizes(tiles=1, prompt=20, short=4, long=30, steps=2, rounds=1)
    task = {**LOAD, "model": str(built_in_folder())}
    config, said = preset("nano"), []
    comparison = compare(
        config, [OURS], make_stages(config, sizes), task, sizes, device=torch.device("cpu"), say=said.append
    )
    assert all(len(comparison.runs[0].seconds[stage.name]) == 1 for stage in comparison.stages)
    assert not comparison.runs[0].unsupported
    first, again = (comparison.runs[0].seconds[name][0] for name in list(comparison.runs[0].seconds)[-3:-1])
    assert min(first, again) > 0
    assert "the machine's limits" in said


@pytest.mark.parametrize("scale", [1.0, 1.5, 7.9])
def test_the_picture_of_the_first_token_has_the_grid_of_its_limit(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = built_in_folder()
    settings = json.loads((built_in / "processor_config.json").read_text()) | {"image_scale": scale}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(built_in / name, tmp_path / name)
    made: list[BenchStage] = []

    def give_up(config: Any, commands: Any, stages: list[BenchStage], *rest: Any, **known: Any) -> None:
        made.extend(stages)
        raise UserError("nothing is measured")

    monkeypatch.setattr(bench_run, "compare", give_up)
    assert run(["bench", "--model", str(tmp_path), "--only", "first-token"]) == 1
    side = made[0].task["side"]
    assert Processor.from_folder(tmp_path).choose_grids([[(side, side)]]) == [(2, 2)]
    assert made[0].name == f"first token, image of {side} x {side}"


@pytest.mark.usefixtures("_no_rests")
@pytest.mark.parametrize("device", CPU_AND_CARD)
def test_a_device_is_measured_beside_its_own_limits(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert run(["bench", "--quick", "--device", device, "--threads", "1", "--out", str(out)]) == 0
    told, said = json.loads(out.read_text()), capsys.readouterr().out
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    assert said.startswith(f"{name}, 1 threads: reads ")
    assert told["machine"]["device"] == name
    assert told["contestants"][0]["loaded"]["device"].split(":")[0] == device
    stages = make_stages(preset("nano"), Sizes.quick(), image_scale=1.5)
    limited = [stage for stage in stages if stage.work is not None]
    assert len(limited) == 7
    shares = {stage["name"]: stage["share_of_limit"] for stage in told["stages"]}
    for stage in limited:
        assert 0 < shares[stage.name] < 1.5, stage.name
        assert f"{shares[stage.name]:.0%}" in next(line for line in said.splitlines() if stage.name in line)


@pytest.mark.parametrize("device", CPU_AND_CARD_WITH_GRAPHS)
def test_no_graph_is_recorded_while_steps_are_timed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, before, after = count_recordings(device, monkeypatch), [], []

    def timed(work: Any) -> dict[str, Any]:
        before.append(list(shapes))
        work()
        after.append(list(shapes))
        return {"seconds": 1}

    monkeypatch.setattr(our_side, "timed", timed)
    ours = our_side.Ours()
    ours.vlm = load("nano", device=device, dtype="bfloat16" if device == "cuda" else "float32")
    for _ in range(2):
        ours.decode({"do": "decode", "batch": 2, "context": 510, "steps": 4, "seed": 1})
    assert before == after == [[(2, 512), (2, 1024)]] * 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dies", "ended with code 1 at load: .*the model is too large for me"),
        ("is killed", "was killed, which the system does when memory runs out, at load: "),
        ("crashes", "was ended by SIGSEGV at load"),
        ("fails", "failed at load: ValueError: no such model"),
        ("babbles", "answered load without a JSON object: 'not JSON"),
    ],
)
def test_a_peer_that_fails_is_one_line(how: str, message: str) -> None:
    with Target([*FAKE, how], threads=None) as peer, pytest.raises(UserError, match=message):
        peer.ask(LOAD, timeout_s=60)


def comparison_of(*commands: list[str]) -> SpeedComparison:
    """Compare peers that say fixed times, in reading a prompt."""
    config, sizes = small_config("tiny"), Sizes.quick()
    stages = make_stages(config, sizes, ["prefill"])
    return compare(config, commands, stages, LOAD, sizes, device=torch.device("cpu"), say=lambda text: None)


@pytest.mark.usefixtures("_known_machine")
def test_who_is_measured_has_read_something_new_right_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    ask = Target.ask
    monkeypatch.setattr(Target, "ask", lambda self, task, **rest: asked.append(dict(task)) or ask(self, task, **rest))
    sizes = replace(Sizes.quick(), rounds=2)
    config = small_config("tiny")
    stages = [stage for stage in make_stages(config, sizes) if stage.group == "prefill"] * 2
    compare(config, [FAKE], stages, LOAD, sizes, device=torch.device("cpu"), say=lambda text: None)
    *_, measured = [place for place, task in enumerate(asked) if task["do"] == "load"]
    told = [(task["tokens"], task["seed"]) for task in asked[measured + 1 + len(stages) :]]
    assert told[1::2] == [(256, 1), (256, 1), (256, 2), (256, 2)]
    assert [tokens for tokens, _ in told[::2]] == [64] * 4
    assert len({seed for _, seed in told[::2]}) == 4


@pytest.mark.usefixtures("_known_machine")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("says nothing", r'fake_peer.py .says nothing.` must answer load with "name", a text, got \{\}'),
        ("has no time", 'must answer load with "seconds", a number above 0, got {"name": "fake 1.0"}'),
        ("takes no time", 'must answer prefill with "seconds", a number above 0, got {"seconds": 0}'),
    ],
)
def test_a_peer_that_answers_without_what_was_asked_is_one_line(how: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        comparison_of(FAKE, [*FAKE, how])


@pytest.mark.usefixtures("_known_machine")
def test_targets_of_one_name_keep_figures_of_their_own() -> None:
    comparison = comparison_of(FAKE, FAKE, [*FAKE, "made its weights"])
    names = ["fake 1.0", "fake 1.0 #2", "fake 1.0 #3"]
    assert [runs.name for runs in comparison.runs] == names
    without_limits = replace(comparison, stages=[replace(stage, work=None) for stage in comparison.stages])
    load_told, prefill_told = to_dict(without_limits, "x")["stages"]
    assert list(prefill_told["figures"]) == names
    assert list(prefill_told["peer_over_ours"]) == names[1:]
    assert load_told["unsupported"] == {"fake 1.0 #3": "its weights are drawn"}


@pytest.mark.usefixtures("_known_machine")
def test_a_page_is_told_in_pages_per_minute_and_by_its_parts_where_a_target_tells_them() -> None:
    config, sizes = preset("deepseek-ocr"), Sizes.quick()
    stages = make_stages(config, sizes, ["page"])
    commands = [FAKE, [*FAKE, "times its page"]]
    comparison = compare(config, commands, stages, LOAD, sizes, device=torch.device("cpu"), say=lambda text: None)
    _, page, first, others = comparison.stages
    whole_alone, timed = comparison.runs
    assert [page.figure(run) for run in timed.seconds[page.name]] == [20]  # one in 3 s
    assert [first.figure(run) for run in timed.seconds[first.name]] == [1]
    assert [others.figure(run) for run in timed.seconds[others.name]] == [3.5]  # 7 tokens in 2 s
    assert list(whole_alone.seconds) == ["load", page.name]


def test_a_peer_that_hangs_is_ended() -> None:
    hangs = [sys.executable, "-c", "input(); input()"]
    with Target(hangs, threads=None) as peer, pytest.raises(UserError, match=r"not answer load within 0 s"):
        peer.ask(LOAD, timeout_s=0.2)
    with pytest.raises(UserError, match="cannot be started"):
        Target(["/no/such/program", "x"], threads=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "speed"],
            "there is no stage speed: the stages are encode, prefill, decode, first-token, page, memory",
        ),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (
            ["--model", "random:huge"],
            "random:SIZE must have one of the sizes nano, tiny, small, base, deepseek-ocr, unlimited-ocr, "
            "deepseek-ocr-2, got huge",
        ),
        (["--model", "/no/such"], "no folder /no/such"),
        (["--weights", "int3"], "weights must be"),
        (["--folder", "x"], "--folder is for random:SIZE"),
        (["--against", "nothing"], "no peer 'nothing': give a command line or one of the adapters"),
        (["--out", "/no/such/folder/x.json"], "cannot write /no/such/folder/x.json"),
        (["--out", "/"], "cannot write /: it is a folder"),
        (["--against", "foo 'bar"], "is no command line: No closing quotation"),
        (["--model", "random:nano", "--folder", __file__], "exists: choose a new folder"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_the_named_peers_are_the_adapters_of_the_checkout() -> None:
    command = peer_command("llama-text")
    assert command[0] == sys.executable
    assert Path(command[1]).is_file()


def test_a_share_is_the_least_time_over_ours_and_a_ratio_the_peers_time_over_ours() -> None:
    config = small_config("tiny")
    stage = next(s for s in make_stages(config, Sizes.quick()) if s.name.startswith("decode, batch 4"))
    held = ModelBytes(total=0, copied=0, encoder=0, dense=1_000_000, experts=0, cache_per_token=0)
    plain = ComputeTypes(encoder="float32", language="float32", rest="float32")
    loaded = {"bytes": held.to_dict(), "compute": plain.to_dict()}
    ours, peer = (
        TargetResults(name=name, versions={}, command=[], loaded=loaded, seconds={stage.name: seconds})
        for name, seconds in (("ours", [0.02, 0.01, 0.04]), ("peer", [0.04, 0.03]))
    )
    comparison = SpeedComparison(stages=[stage], runs=[ours, peer], machine=machine(read=1e9, rate=1e15))
    # Four steps read a million bytes each at 1 GB/s: 4 ms, and the median run took 20 ms.
    assert comparison.share(stage) == pytest.approx(0.2)
    assert comparison.ratios(stage, peer) == pytest.approx([2, 3])
    told = to_dict(comparison, "x")["stages"][0]
    assert told["figures"]["ours"] == pytest.approx([16 / 0.02, 16 / 0.01, 16 / 0.04])  # tokens per second
    assert told["peer_over_ours"]["peer"]["median"] == pytest.approx(2.5)


def test_each_part_of_the_work_takes_the_limit_of_its_own_type() -> None:
    products_of = {"float32": {"a": 1e8}, "bfloat16": {"a": 1e9}, "int8": {"a": 4e9, "b": 1e9}}
    limits = replace(machine(), products=products_of)
    work = StageWork(read_bytes=1, encoder=8e9, language=4e9, rest=1e9)
    plain = ComputeTypes(encoder="bfloat16", language="bfloat16", rest="bfloat16")
    assert work.min_seconds(limits, plain) == pytest.approx(13)
    assert work.min_seconds(limits, replace(plain, encoder="int8")) == pytest.approx(2 + 4 + 1)
    assert work.min_seconds(limits, replace(plain, encoder="int8", language="int8")) == pytest.approx(2 + 1 + 1)


@pytest.mark.parametrize(
    ("weights", "has_int8", "expected"),
    [
        (None, True, ComputeTypes(encoder="bfloat16", language="bfloat16", rest="bfloat16")),
        ("int8", True, ComputeTypes(encoder="int8", language="int8", rest="bfloat16")),
        ("int4", True, ComputeTypes(encoder="int8", language="bfloat16", rest="bfloat16")),
        ("int8", False, ComputeTypes(encoder="bfloat16", language="bfloat16", rest="bfloat16")),
    ],
)
def test_a_model_says_in_which_types_its_parts_multiply(
    weights: SchemeName | None, has_int8: bool, expected: ComputeTypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VL2_KERNELS", "off")
    monkeypatch.setattr(quantized_matmul, "has_int8_products", lambda: has_int8)
    monkeypatch.setattr(quantized_matmul, "has_bfloat16_products", lambda: True)
    model = small_model("tiny").to(torch.bfloat16)
    if weights is not None:
        quantize_model(model, SCHEMES[weights])
    assert ComputeTypes.of(model) == expected


def test_loading_is_bound_by_new_memory_and_memory_is_told_in_gb(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [load_stage(LOAD), *(s for s in make_stages(small_config("tiny"), Sizes.quick(), ["memory"]))]
    runs = TargetResults(
        name="ours",
        versions={},
        command=[],
        loaded={
            "bytes": ModelBytes(
                total=100_000_000, copied=100_000_000, encoder=0, dense=0, experts=0, cache_per_token=0
            ).to_dict(),
            "kernels": "avx2; amx could not be had: a reason",
            "compute": ComputeTypes(encoder="int8", language="bfloat16", rest="bfloat16").to_dict(),
        },
        seconds={"load": [1.25], "peak memory": [2_500_000_000.0]},
    )
    comparison = SpeedComparison(stages=stages, runs=[runs], machine=machine(read=1e9))
    # New memory comes at an eighth of the reading rate: 0.8 s for a hundred million bytes.
    assert comparison.share(stages[0]) == pytest.approx(0.8 / 1.25)
    print_report(comparison, sys.stdout)
    said = capsys.readouterr().out
    assert "1.25" in said
    assert "writes new memory at 0.1 GB/s" in said
    assert "2.5" in said
    assert "kernels: avx2; amx could not be had: a reason" in said
    assert "matrix products: encoder in int8, language in bfloat16, rest in bfloat16" in said


def test_the_bytes_of_a_model_are_those_of_its_tensors() -> None:
    model = small_model("base")
    held = ModelBytes.of(model)
    assert held.total == sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    experts = sum(p.numel() * 4 for n, p in model.named_parameters() if ".mlp.experts." in n)
    table = model.language.model.embed_tokens.weight.numel() * 4
    language = sum(t.numel() * 4 for t in [*model.language.parameters(), *model.language.buffers()])
    assert (held.experts, held.dense) == (experts, language - table - experts)
    assert held.copied == held.total


@pytest.mark.skipif(not MAPPINGS.exists(), reason="looks at what is mapped as Linux shows it")
def test_weights_that_stay_in_their_files_are_read_for_every_token_but_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "lies_in_huge_pages", lambda *part: True)
    monkeypatch.setattr(in_place, "LEAST_BYTES", 0)
    model = small_model("tiny").bfloat16()  # float32 would have to begin at lines of the cache
    save_model(model, tmp_path / "saved")
    copied, held = ModelBytes.of(model), ModelBytes.of(load_model(tmp_path / "saved", LoadOptions(only_answers=True)))
    assert (held.total, held.experts, held.dense) == (copied.total, copied.experts, copied.dense)
    decoder = model.language.model
    in_file = held.experts + 2 * (decoder.embed_tokens.weight.numel() + model.language.lm_head.weight.numel())
    assert held.copied == held.total - in_file


def test_the_work_of_the_full_sizes_is_what_is_known_of_them() -> None:
    config = preset("tiny")
    held = ModelBytes(
        total=0, copied=0, encoder=826_000_000, dense=692_000_000, experts=4_844_000_000, cache_per_token=61_440
    )
    assert encode_work(config, held, 5).operations / 5 == pytest.approx(669e9, rel=0.03)
    # Of all layers 849e9; of the last one keys and values alone, without queries, output, eight experts and pairs.
    spared = 2e3 * (2 * 1280**2 + 8 * 3 * 1280 * 896) + 4 * 1280 * 1000 * 1001 / 2
    assert prefill_work(config, held, 1000).operations == pytest.approx(849e9 - spared, rel=0.01)
    assert prefill_work(config, held, 1000).read_bytes == pytest.approx(held.dense + held.experts * (10 + 6 / 64) / 11)
    one = decode_work(config, held, batch=1, context=0, steps=1)
    assert one.read_bytes == pytest.approx(1148e6, rel=0.02)
    assert visited_share(config, 1) == pytest.approx(6 / 64)
    assert visited_share(config, 1000) == pytest.approx(1)
    many = decode_work(config, held, batch=16, context=100, steps=2)
    assert many.read_bytes == pytest.approx(
        2 * (held.dense + held.experts * visited_share(config, 16) + 16 * 101 * 61_440)
    )


def test_the_limits_of_the_machine_are_measured_at_the_models_shapes() -> None:
    config = small_config("tiny")
    limits = measure_machine(config, torch.device("cpu"), repeats=1)
    assert limits.read_bytes_per_s > 1e8
    for kind in ("float32", "bfloat16", "int8"):
        assert set(limits.products[kind]) == {shape.name for shape in model_matmuls(config)}
        assert limits.operations_per_s(kind) == max(limits.products[kind].values())
    slower = replace(limits, read_bytes_per_s=limits.read_bytes_per_s / 2)
    assert slower.best_with(limits) == limits.best_with(slower) == limits
    assert limits.first_write_bytes_per_s > 1e7
    again = measure_machine(
        config, torch.device("cpu"), repeats=1, first_write_bytes_per_s=limits.first_write_bytes_per_s
    )
    assert again.first_write_bytes_per_s == limits.first_write_bytes_per_s


def test_ids_and_images_are_the_same_for_a_seed_everywhere() -> None:
    assert random_ids(5, 1000, 3) == random_ids(5, 1000, 3) != random_ids(5, 1000, 4)
    assert all(125 <= i < 500 for i in random_ids(200, 1000, 0))
    assert make_image(64, 1).tobytes() == make_image(64, 1).tobytes() != make_image(64, 2).tobytes()
    program = (
        "from vl2.bench.protocol import random_ids; import sys; print(random_ids(3, 1000, 3), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{random_ids(3, 1000, 3)} False"


def test_a_random_checkpoint_loads_and_is_deleted_unless_it_is_kept(tmp_path: Path) -> None:
    with random_checkpoint("nano", None) as folder:
        model: Any = load(folder, device="cpu").model
        weight = model.language.lm_head.weight.float()
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert torch.all(model.language.model.norm.weight == 1)
    assert not folder.exists()
    with random_checkpoint("nano", tmp_path / "kept") as kept:
        written = (kept / "config.json").stat().st_mtime_ns
    with random_checkpoint("nano", tmp_path / "kept") as again:
        assert (again / "config.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="exists: choose a new folder"):
        write_random_checkpoint("nano", kept)
    with pytest.raises(UserError, match="not of the size tiny"), random_checkpoint("tiny", kept):
        pass
