"""Benchmarks measure what they say: a fake clock, baselines equal to the score, whole records."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks
import thinkback_utils as tb
from benchmarks import __main__ as command
from benchmarks import (
    context,
    costs,
    evaluation,
    fit,
    inference,
    job,
    layers,
    memory,
    report,
    score,
    training,
)
from benchmarks.rounds import Call, alternate, summarize
from experiments.evaluation import ID_TEST
from experiments.peers import kept_bytes

needs_peers = pytest.mark.skipif(
    isinstance(context.pytorch_ood(), str), reason="pytorch-ood is not installed"
)
QUICK = context.Context(torch.device("cpu"), quick=True, results=Path("no such folder"))


class FakeClock:
    """Time that passes only when a call says so."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        turns = cycle(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += next(turns)

        return run


def network() -> tb.models.WideResNet:
    torch.manual_seed(1)
    return tb.models.WideResNet(10, 1).eval().double()


def test_calls_take_turns_in_both_directions():
    clock = FakeClock()
    calls = {name: Call(clock.call(name, 1.0)) for name in "abc"}
    seconds = alternate(calls, budget=9.0, least=1, most=99, clock=clock)
    # Warm-up, then three rounds of three seconds.
    assert "".join(clock.log) == "abc" + "abc" + "cba" + "abc"
    assert seconds == {name: [1.0] * 3 for name in "abc"}


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 5), (70.0, 7), (1e9, 11)])
def test_rounds_follow_the_budget_within_bounds(budget, rounds):
    clock = FakeClock()
    seconds = alternate({"a": Call(clock.call("a", 10.0))}, budget, least=5, most=11, clock=clock)
    assert len(seconds["a"]) == rounds


def test_part_of_a_batch_is_scaled_up():
    clock = FakeClock()
    seconds = alternate({"a": Call(clock.call("a", 3.0), share=1 / 8)}, 0, 2, 2, clock)
    assert seconds["a"] == [24.0, 24.0]


def test_a_ratio_is_formed_within_its_round():
    slower = [1.0, 10.0, 100.0]  # a machine that other work slows down
    reference, record = summarize({"f": slower, "g": [s / 4 for s in slower]}, "f", batch=7)
    assert (record["ratio_q25"], record["ratio"], record["ratio_q75"]) == (0.25, 0.25, 0.25)
    assert record["seconds_q25"] == np.quantile(slower, 0.25) / 4
    assert {"what": "g", "reference": "f", "rounds": 3, "batch": 7}.items() <= record.items()
    assert reference["ratio"] == 1


def test_baselines_compute_the_score_they_are_compared_with():
    model, x = network(), torch.rand(5, 3, 32, 32, dtype=torch.float64)
    head = model.get_classifier()
    with torch.no_grad():
        h = model.forward_features(x)
        z = head(h)
    expected = torch.rand(10, 64, dtype=torch.float64) + 0.1
    scores = tb.scores.thinkback(h, z, expected, score.T, score.EPS)
    given = (h, head.weight.detach(), head.bias.detach(), 1 / expected)
    torch.testing.assert_close(score.one_by_one(*given), scores)
    torch.testing.assert_close(score.vectorized(*given), scores)
    torch.testing.assert_close(score.backward(model, head, x, 1 / expected), scores)
    for logits in (z, None):
        rows = score.closed_forms(h, logits, head, 1 / expected, None)
        assert set(rows) == {"msp", "energy", "thinkback"}
        torch.testing.assert_close(rows["thinkback"]().detach(), scores)
        torch.testing.assert_close(rows["energy"]().detach(), -z.logsumexp(1))


def test_loops_do_the_share_that_they_claim(monkeypatch):
    monkeypatch.setattr(score, "ENTRIES", 3 * 4 * 6)
    rows = score.by_autograd(torch.rand(12, 6), nn.Linear(6, 4), torch.ones(4, 6))
    assert {row.share for row in rows.values()} == {0.25}
    assert all(len(row.run()) == 3 for row in rows.values())


@needs_peers
def test_both_libraries_do_the_same_job():
    results = str(Path(benchmarks.__file__).parents[1] / "results")
    ours, theirs = (job.job(method, 20, results)() for method in ("energy", "EnergyBased"))
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-4)


def test_a_job_is_reported_with_its_rate_and_memory(tmp_path):
    found = [record("Energy", 1.0, seconds=4.0, images=100)]
    found.append({"what": "memory, Energy", "images": 100, "peak_bytes": 5e6})
    found.append(context.skipped("KNN, pytorch-ood", "not there", images=100))
    table, text = report.job(runs(tmp_path, job=found))
    assert table.to_numpy().tolist() == [["Energy", "50", "1 (1 to 1)", "5 MB"]]
    assert "KNN, pytorch-ood (not there)." in text


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(score, "pytorch_ood", lambda: "not there")
    assert score.gradnorm(nn.Linear(4, 3), torch.rand(2, 4), "weight", 2) == {}
    assert score.of_features(nn.Linear(4, 3), torch.rand(9, 4), torch.arange(9) % 3) == {}
    records = score.missing({}, batch=2)
    assert len(records) == 4
    assert {(record["skipped"], record["batch"]) for record in records} == {("not there", 2)}


@needs_peers
def test_peers_stand_beside_our_scores():
    head, bank = nn.Linear(8, 3).requires_grad_(False), torch.randn(90, 8)
    h = torch.randn(4, 8)
    rows = score.of_features(head, bank, torch.arange(90) % 3)
    x, y = (nn.functional.normalize(v).double() for v in (h, bank))
    distances = torch.cdist(x, y).sort(1).values
    found = rows["KNN, pytorch-ood"](tb.features.Features(h, h))
    torch.testing.assert_close(found.double(), distances[:, 49], rtol=1e-4, atol=1e-4)
    (call,) = score.gradnorm(head, h, "weight", 2).values()
    assert call.share == 0.5
    ours = tb.scores.gradnorm(h[:2], head(h[:2]))
    torch.testing.assert_close(call.run().double(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [999, 1000, 25_500])
def test_streams_have_the_samples_they_say(samples):
    found = list(fit.batches(samples))
    assert sum(len(h) for h, _ in found) == samples
    assert {h.shape[1] for h, _ in found} == {fit.D}
    places = {h.untyped_storage().data_ptr() for h, _ in found}
    assert len(places) <= 10  # nothing grows with the stream


@pytest.mark.parametrize("method", ["diagonal", "Kronecker", "full", *fit.PEERS])
def test_kept_bytes_are_those_of_the_fitted_methods(method):
    if method in fit.PEERS and isinstance(context.pytorch_ood(), str):
        pytest.skip("pytorch-ood is not installed")
    fitted = fit.stream(method, 3000)()
    network = 4 * (fit.K * fit.D + fit.K)  # ViM keeps the last layer, too
    held = costs.kept_bytes(method, 3000, fit.K, fit.D)
    assert held <= kept_bytes(fitted) <= held + network + 100


def test_growth_sees_the_peak_and_not_what_was_there():
    held = torch.ones(1 << 24)  # 64 MB before the work begins

    def work() -> None:
        torch.ones(1 << 25).sum()  # 128 MB that are gone again at the end

    assert 120e6 < memory.growth(work) < 200e6
    assert held.sum() == 1 << 24


def test_memory_is_measured_in_another_process():
    grown = memory.peak("fit", "stream", method="diagonal", samples=300_000)
    assert 0 <= grown < 40e6  # the features of 300,000 samples are 154 MB
    with pytest.raises(RuntimeError, match="no_such_module"):
        memory.peak("no_such_module", "stream")


@needs_peers
def test_both_evaluations_agree():
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 8), torch.randn(3)
    sets = {}
    kinds = {"cifar10-train": (90, 2.0), "cifar10-test": (300, 2.0), "svhn": (200, 0.5)}
    for name, (size, spread) in kinds.items():
        h = spread * torch.rand(size, 8)
        sets[name] = tb.features.Features(h, h @ weight.T + bias, torch.arange(size) % 3)
    theirs = evaluation.theirs(context.pytorch_ood(), tb.features.Bundle(sets, weight, bias))
    ours = {row["method"]: row["auroc"] for row in evaluation.ours(sets, evaluation.SHARED)}
    assert {record["method"] for record in theirs} == set(ours)
    for record in theirs:
        assert record["auroc"] == pytest.approx(ours[record["method"]], abs=1e-4)


@pytest.mark.parametrize("reading", ["D", "E"])
def test_both_ways_to_a_layer_give_its_gradients(reading):
    model, x = network(), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    names = layers.parameters_of(model, x, reading)
    assert len(names) == {"D": 2, "E": 1}[reading]
    (squares,) = tb.gradients.squared_gradients(model, x, [reading])
    torch.testing.assert_close(layers.by_vmap(model, x, names), squares[reading])


def test_every_way_runs_on_the_whole_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(tb.gradients, "score", lambda squares, expected: seen.append(squares.shape))
    monkeypatch.setattr(layers, "CHUNK", 2)
    model = network().float()
    ways = {"D": [(3, 128)], f"D{layers.VMAP}": [(2, 128), (1, 128)], "C+D": [(3, 64), (3, 128)]}
    for way, sizes in ways.items():
        seen.clear()
        layers.work(model, torch.rand(3, 3, 32, 32), way)()
        assert [tuple(shape) for shape in seen] == sizes


def test_set_ups_agree_with_the_plain_pass():
    model, x = network().float(), torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        h = model.forward_features(x)
    plain = inference.forward(model, inference.PLAIN)(x)
    torch.testing.assert_close(plain[0], h)
    found = inference.forward(model, inference.Setup(channels_last=True, batch=2))(x)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
    graph = inference.forward(model, inference.Setup(exported=True, batch=2))(x)
    for close in (inference.agreement(found, plain), inference.agreement(graph, plain)):
        assert close["decisions_changed"] == 0
        assert close["score_change"] < 1e-3
    other = inference.agreement((plain[0], plain[1].flip(1)), plain)
    assert other["decisions_changed"] > 0
    both = inference.Setup(True, True, batch=64)
    assert str(both) == "channels last, bfloat16 backbone, batch 64"
    assert len({str(setup) for setup in inference.SETUPS}) == len(inference.SETUPS)


def test_no_compiler_is_a_reason(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    full = context.Context(torch.device("cpu"))
    assert "compiler" in inference.why_not(inference.Setup(compiled=True), full)
    gpu = context.Context(torch.device("cuda"))
    assert "CPU" in inference.why_not(inference.Setup(exported=True), gpu)
    assert inference.why_not(inference.PLAIN, full) == ""


def test_operations_are_those_of_the_layers():
    model, multiplications = training.network(), []

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        multiplications.append(layer.weight.numel() * output[0, 0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(hook)
    model.eval()(torch.rand(1, 3, 32, 32))
    counts = training.operations(7)
    assert counts["forward"] == 7 * 2 * sum(multiplications)
    backward = 2 * sum(multiplications) - multiplications[0]  # no gradient of the image
    assert counts["step"] == 7 * 2 * (sum(multiplications) + backward)


def test_the_usual_loop_trains_on_every_image(monkeypatch):
    digits, seen = tb.data.load("digits", "train"), []
    few = tb.data.ImageSet(digits.images[:40], digits.labels[:40])
    model = tb.models.WideResNet(10, 1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(training, "BATCH", 16)
    before = model.fc.weight.clone()
    training.usual_loop(model, few, 0, torch.device("cpu"))()
    assert [len(x) for x in seen] == [16, 16, 8]
    assert torch.cat(seen).min() < -1  # normalized
    assert not torch.equal(model.fc.weight, before)


def test_the_recipe_is_a_mean_over_its_sides():
    assert sum(training.shares().values()) == pytest.approx(1)
    assert set(training.shares()) == {16, 24, 32}


def test_a_run_writes_what_ran_on_what(tmp_path, capsys):
    command.main(["machine", "--quick", "--out", str(tmp_path)])
    found = tb.files.read_json(tmp_path / "machine-cpu.json")
    facts = {"group": "machine", "quick": True, "threads": torch.get_num_threads()}
    assert facts.items() <= found.items()
    assert {"command", "commit", "device", "versions", "started"} <= set(found)
    fields = {"what", "reference", "rounds", "share"}
    fields |= {f"{key}{end}" for key in ("seconds", "ratio") for end in ("", "_q25", "_q75")}
    assert all(fields <= set(record) for record in found["records"])
    assert "product float64" in capsys.readouterr().out


def test_every_group_has_a_run_and_an_unknown_one_is_refused(capsys):
    modules = {path.stem for path in Path(benchmarks.__file__).parent.glob("*.py")}
    assert set(command.GROUPS) <= modules
    with pytest.raises(SystemExit):
        command.main(["no-such-group"])
    assert "no-such-group" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["machine", "--device", "cuda", "--out", str(tmp_path)])
    assert "nothing was measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_lines_name_what_was_skipped():
    records = [context.skipped("x", "why", batch=3)]
    records.append({"what": "y", "samples": 5, "peak_bytes": 2_500_000})
    assert command.lines(records) == ["  x (batch 3): skipped: why", "  y (samples 5): 2.5 MB"]


def record(what: str, ratio: float, seconds: float = 1.0, **facts) -> dict:
    own = {"what": what, "reference": "f", "rounds": 5, "share": 1.0}
    for end in ("", "_q25", "_q75"):
        own |= {f"ratio{end}": ratio, f"seconds{end}": seconds}
    return own | facts


def runs(folder: Path, **groups: list[dict]) -> report.Runs:
    """Files as a run writes them, with these records."""
    head = {"device": "a machine", "versions": {"torch": "2"}, "threads": 2, "quick": True}
    for group, records in groups.items():
        tb.files.write_json(folder / f"{group}-cpu.json", head | {"records": records})
    return report.Runs(folder)


def score_records(at_one: float, at_200: float, head: float, autograd: float) -> list[dict]:
    found = [
        record("forward", 1, seconds=0.5 * batch, place="network", batch=batch)
        for batch in (1, 200, 1000)
    ]
    found.append(record("thinkback", at_one, place="network", batch=1))
    found.append(record("thinkback", at_200, place="network", batch=200))
    found.append(record("backward, batch 1", 6.0, place="network", batch=200))
    shape = {"place": "head", "K": 7, "D": 5, "batch": 200, "bank": 9}
    found.append(record("thinkback", head, seconds=0.5, **shape))
    found.append(record("autograd, head", autograd, **shape))
    return [*found, context.skipped("ViM", "too slow", **shape)]


def test_goals_are_judged_by_the_medians(tmp_path):
    fitted = [record("update, diagonal", 0.02)]
    good = runs(tmp_path, score=score_records(0.005, 0.0005, 2.0, 300.0), fit=fitted)
    assert [line[-1] for line in report.goals(good)] == ["kept"] * 5 + ["**missed**"]
    assert report.goals(good)[2][2] == "12,000 times"  # six passes against 0.0005 of one
    fitted = [record("update, diagonal", 0.01)]
    bad = runs(tmp_path, score=score_records(0.02, 0.002, 4.0, 300.0), fit=fitted)
    kept = [line[-1] == "kept" for line in report.goals(bad)]
    assert kept == [False, False, True, False, False, True]


def test_what_was_left_out_is_said_with_its_reason(tmp_path):
    found = runs(tmp_path, score=score_records(1, 1, 2.5, 4))
    table, text = report.heads(found)
    assert "ViM (too slow)" in text
    assert table.loc["Thinkback", "K = 7, batch 200"] == 2.5
    assert "quick" in found.where()
    assert found.batches() == (1, 200)
    assert found.curves()["forward"] == [(1, 500.0), (200, 500.0), (1000, 500.0)]


def test_a_group_that_was_not_measured_is_named_with_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"layers-cpu\.json.*`make bench`"):
        report.layers(report.Runs(tmp_path))
    with pytest.raises(FileNotFoundError, match="`make bench-gpu`"):
        report.fit(report.Runs(tmp_path, "cuda"))


def test_the_model_takes_the_slower_of_memory_and_arithmetic(tmp_path):
    units = [record("product float64", 1, seconds=2.0, operations=200)]
    units += [record("product float32", 1, operations=200), record("copy", 1, bytes=50)]
    found = runs(tmp_path, score=score_records(1, 1, 1, 1), machine=units)
    machine = found.machine(forward=3.0)
    assert machine == costs.Machine(float64=100, float32=200, memory=50, network=3.0 / 0.5)
    at = machine.crossing()
    assert machine.score(1, 7, 5) == 8 * 7 * 5 / 50  # too small a batch to wait for arithmetic
    assert machine.score(200, 7, 5) == 2 * 200 * 7 * 5 / 100
    assert machine.score(at, 7, 5) == pytest.approx(8 * 7 * 5 / 50)
    expected = 2 * 200 * 35 / 100 + 2 * 200 * 35 / 200
    checked = report.model_check(found, machine)
    assert list(checked["measured / model"]) == [f"{0.5 / expected:,.3g}"]
    table = report.scale({"here": (10**6, 7, 5, 1e3)}, machine, {"one": 1e9, "two": 2e9}, workers=2)
    assert table.loc["kept: KNN", "here"] == "20 MB"
    seconds = 10**6 * (1e3 / 1e9 + 2 * 35 * machine.network / machine.float64 / 1e9)
    assert table.loc["**fit: one**", "here"] == f"{seconds:.3g} s"
    assert table.loc["**fit: two**", "here"] == f"{seconds / 2:.3g} s"


def test_reduced_precision_is_held_against_the_interval():
    rng, ID = np.random.default_rng(0), ID_TEST
    exact = {ID: {"msp": rng.normal(0, 1, 300)}, "svhn": {"msp": rng.normal(1, 1, 300)}}
    near = {name: {"msp": row["msp"] + 1e-9} for name, row in exact.items()}
    far = {ID: exact[ID], "svhn": {"msp": exact["svhn"]["msp"] + 2}}
    title, moved, kept = report.precision(exact, near, resamples=50).iloc[0]
    assert (title, kept) == ("Softmax", "4 of 4")
    assert moved < 0.005  # shown as 0.00
    assert report.precision(exact, far, resamples=50).iloc[0, 2] == "0 of 4"


def test_an_epoch_is_held_against_its_floors(tmp_path):
    facts = {"images": 100, "operations": 6e9, "bytes": 2e8}
    usual = [
        record(f"usual loop, {n} workers", ratio, seconds=ratio, **facts)
        for n, ratio in ((0, 1.0), (2, 0.8))
    ]
    ours = [record("ours, 16 px", 0.1, images=100, share_of_recipe=0.5)]
    facts |= {"share_of_recipe": 0.5, "profile": {"aten::mm": 0.75, "aten::add": 0.2}}
    ours.append(record("ours, 32 px", 0.4, **facts))
    units = [record("product float32", 0.01, operations=1e9), record("copy", 0.02, bytes=1e8)]
    for one in (*usual, *ours, *units):
        one["reference"] = "usual loop, 0 workers"
    table, text = report.training(runs(tmp_path, training=[*usual, *ours, *units]))
    assert list(table.iloc[-3:, 2]) == ["0.25", "0.06", "0.04"]  # the recipe's mean, both floors
    assert "2.00 times as fast as the better usual loop at full size" in text
    assert "3.20 times over the recipe" in text
    said = "0.06 G operations and moves 2 MB; the step takes 4.00 times both floors together"
    assert said in text
    assert "`mm` 75%, `add` 20%" in text


def test_traffic_is_counted_layer_by_layer(monkeypatch):
    small = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
    monkeypatch.setattr(training, "network", lambda: small)
    assert training.traffic(7) == 7 * 3 * 4 * 32 * 32 * (3 + 2 + 2 + 2)
