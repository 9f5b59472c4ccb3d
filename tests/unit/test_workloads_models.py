"""cnn, linear_regression, resnet, recommender, parameters."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.interfaces import DataShard
from workloads.cnn import CNN
from workloads.digits import load_digits
from workloads.linear_regression import LinearRegression
from workloads.parameters import Parameters, Tensors, _repeat
from workloads.published_shapes import PUBLISHED
from workloads.recommender import SHAPES, Planted, Recommender, area_under_curve, zipf_ids
from workloads.resnet import ResNet, _from_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from harness.interfaces import Workload


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine threads that wait for each other take many times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def initialised(workload: Workload, seed: int = 0) -> nn.Module:
    model = workload.build()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            workload.initialise(name, tensor, seed)
    return model


def trained(workload: Workload, steps: int, lr: float) -> dict[str, float]:
    model = initialised(workload).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    batches = workload.batches(DataShard(0, 1, workload.traits.size(None).global_batch, 1, 0))
    for _ in range(steps):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    with torch.no_grad():
        return dict(workload.evaluate(model.eval()))


@pytest.mark.parametrize(
    ("workload", "steps", "lr"),
    [(CNN(), 150, 1e-3), (LinearRegression(), 100, 0.1), (Recommender(sparse=False), 120, 3e-3)],
    ids=["cnn", "linear_regression", "recommender"],
)
def test_training_reaches_the_target(workload: Workload, steps: int, lr: float) -> None:
    target = workload.traits.size(None).target
    assert target is not None
    reached = trained(workload, steps, lr)[target.metric]
    assert reached <= target.value if target.better == "lower" else reached >= target.value


def test_linear_regression_recovers_slope_and_intercept() -> None:
    values = trained(LinearRegression(), 150, 0.1)
    assert values["slope"] == pytest.approx(3, abs=0.1)
    assert values["intercept"] == pytest.approx(1, abs=0.05)


def test_true_line_has_the_loss_of_the_noise() -> None:
    workload = LinearRegression()
    model = initialised(workload)
    with torch.no_grad():
        model.get_parameter("linear.weight").fill_(3.0)
        model.get_parameter("linear.bias").fill_(1.0)
        values = workload.evaluate(model)
    assert values["validation_loss"] == pytest.approx(0.01, rel=0.1)
    assert (values["slope"], values["intercept"]) == (pytest.approx(3), pytest.approx(1))


def test_digits_are_the_1797_of_scikit_learn() -> None:
    train, held_out = load_digits()
    assert (len(train.labels), len(held_out.labels)) == (1438, 359)
    assert train.images.shape == (1438, 1, 8, 8)
    counts = torch.bincount(torch.cat([train.labels, held_out.labels])).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = torch.cat([train.images, held_out.images])
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-3)


def test_digits_are_read_without_importing_scikit_learn() -> None:
    code = "import sys; from workloads.cnn import CNN; CNN().facts(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        load_digits()


def test_group_norm_keeps_samples_apart_and_batch_norm_couples_them() -> None:
    generator = torch.Generator().manual_seed(0)
    images, sample = torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4)
    with torch.no_grad():
        apart, coupled = (initialised(ResNet(size)).train() for size in ("18-groupnorm", "18-batchnorm"))
        torch.testing.assert_close(apart(images, sample)[:2], apart(images[:2], sample[:2]), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(coupled(images, sample)[:2], coupled(images[:2], sample[:2]), rtol=1e-2)


def test_resnet_50_halves_images_five_times_and_names_parameters_as_published() -> None:
    with torch.device("meta"):
        model = ResNet("50").build()
        logits = model(torch.empty(2, 3, 224, 224), torch.arange(2))
    assert logits.shape == (2, 1000)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == dict(PUBLISHED["resnet-50"]())


def test_residual_blocks_start_as_the_identity() -> None:
    block = initialised(ResNet()).get_submodule("layer1.1").train()
    features = torch.rand(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(block(features), features)


def test_synthetic_images_are_views_of_the_pool_unless_they_wrap_around() -> None:
    pool = torch.arange(8.0)[:, None]
    inside = _from_pool(pool, np.arange(18, 22))
    assert inside.data_ptr() == pool[2:].data_ptr()
    assert inside.flatten().tolist() == [2, 3, 4, 5]
    assert _from_pool(pool, np.arange(14, 18)).flatten().tolist() == [6, 7, 0, 1]


def test_resnet_50_has_no_target_and_nothing_to_evaluate() -> None:
    workload = ResNet("50")
    assert workload.traits.size("50").target is None
    assert workload.evaluate(workload.build()) == {}


@settings(deadline=None)
@given(scored=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_area_under_curve_is_the_share_of_pairs_in_order(scored: list[tuple[int, bool]]) -> None:
    clicked = [score for score, click in scored if click]
    others = [score for score, click in scored if not click]
    if not clicked or not others:
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in clicked for b in others]
    scores = torch.tensor([float(score) for score, _ in scored])
    found = area_under_curve(scores, torch.tensor([float(click) for _, click in scored]))
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_ids_follow_zipfs_law_within_the_table() -> None:
    ids = zipf_ids((np.arange(1_000_000) + 0.5) / 1_000_000, rows=1000)
    assert (ids.min(), ids.max()) == (0, 999)
    counts = np.bincount(ids, minlength=1000)
    assert (np.diff(counts) <= 1).all()
    # The values [10, 100) and [100, 1000) of the power law with exponent 1.05.
    assert counts[9:99].sum() / counts[99:999].sum() == pytest.approx(10**0.05, rel=1e-3)


def test_ids_stay_in_the_table_at_the_ends_of_the_uniform_range() -> None:
    assert zipf_ids(np.array([0.0, 1 - 2**-53]), rows=10_000).tolist() == [0, 9_999]


def test_planted_clicks_are_between_rare_and_common_and_the_same_model_for_every_seed() -> None:
    samples = np.arange(4096, dtype=np.int64)
    first, second = Planted(SHAPES["small"], 1, "train"), Planted(SHAPES["small"], 2, "train")
    clicks = first.clicks(samples)
    assert 0.1 < clicks["clicks"].mean().item() < 0.5
    assert not torch.equal(clicks["ids"], second.clicks(samples)["ids"])
    assert np.array_equal(first._tastes, second._tastes)


def test_dense_gradients_are_the_same_numbers_as_sparse_ones() -> None:
    gradients = []
    for sparse in (True, False):
        workload = Recommender(sparse=sparse)
        model = initialised(workload)
        workload.loss(model, next(workload.batches(DataShard(0, 1, 16, 1, 0)))).backward()
        gradients.append(model.get_parameter("tables.3.weight").grad)
    assert (gradients[0].is_sparse, gradients[1].is_sparse) == (True, False)
    torch.testing.assert_close(gradients[0].to_dense(), gradients[1])
    assert Recommender(sparse=False).traits.sparse_parameters == ()
    assert Recommender.traits.sparse_parameters == ("tables.*.weight",)


@pytest.mark.parametrize(
    ("size", "tensors"), [("gpt2-124m", 148), ("resnet-50", 161), ("vit-b-16", 152), ("llama-1b", 146)]
)
def test_published_models_have_their_number_of_tensors(size: str, tensors: int) -> None:
    with torch.device("meta"):
        assert len(list(Tensors(size).parameters())) == tensors


def gradients_at(step: int, seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    workload = Parameters("resnet-50")
    model = workload.build()
    batches = workload.batches(DataShard(0, 1, 1, 1, seed))
    for _ in range(step):
        next(batches)
    workload.gradients(model, next(batches))
    return model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_fresh_at_every_step_and_depend_on_seed_step_and_name_alone() -> None:
    model, first = gradients_at(step=3)
    assert len(first) == 161
    assert all(g.shape == p.shape for g, p in zip(first.values(), model.parameters(), strict=True))
    _, again = gradients_at(step=3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for _, other in (gradients_at(step=4), gradients_at(step=3, seed=1)):
        assert not any(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["layer1.0.bn1.weight"], first["layer1.0.bn1.bias"])
    whole = torch.cat([gradient.flatten() for gradient in first.values()])
    assert whole.isfinite().all()
    assert whole.std().item() == pytest.approx(0.01, rel=0.01)


def test_gradients_of_a_step_replace_those_of_the_last() -> None:
    workload = Parameters("resnet-50")
    model = workload.build()
    batches = workload.batches(DataShard(0, 1, 1, 1, 0))
    workload.gradients(model, next(batches))
    parameter = model.get_parameter("fc.weight")
    before = parameter.grad
    assert before is not None
    kept = before.clone()
    workload.gradients(model, next(batches))
    assert parameter.grad is not before
    assert torch.equal(before, kept)


@given(size=st.integers(1, 9), offset=st.integers(0, 8), length=st.integers(0, 40))
def test_pool_is_repeated_from_its_offset(size: int, offset: int, length: int) -> None:
    target = torch.full((length,), -1)
    _repeat(torch.arange(size), offset % size, target)
    assert target.tolist() == [(offset % size + index) % size for index in range(length)]
