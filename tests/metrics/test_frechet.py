"""The Fréchet distance: right values, the same for any batches and processes."""

import math

import pytest
import torch
import torch.distributed as dist
from helpers import assert_user_error
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from aim_lightning.metrics import count_suffix, metric_name
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance, frechet_distance, mean_and_covariance

torch.set_num_threads(1)
FEATURES = 6


class Means(FeatureNetwork):
    """Six means of stripes of the image: a network without weights file."""

    name, metric_name, num_features, input_size = "means", "fd_means", FEATURES, 8
    recipe = {"stripes": "two rows a channel"}  # noqa: RUF012
    weights_hash = "none"
    calls = 0

    def weights_path(self):
        raise NotImplementedError

    def _build(self):
        return nn.Linear(1, 1)

    def _features(self, images):
        self.calls += 1
        return images.float().unflatten(2, (2, -1)).mean((3, 4)).flatten(1)


@pytest.fixture
def network() -> Means:
    return Means().load()


def gaussian(count: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator, dtype=dtype)
    return torch.randn(count, FEATURES, generator=generator, dtype=dtype) @ mixing + seed


def filled(network, real, fake, **kwargs) -> FrechetDistance:
    distance = FrechetDistance(network, **kwargs)
    distance.update_features(real, real=True)
    distance.update_features(fake, real=False)
    return distance


def test_eigenvalues_that_do_not_converge_use_another_solver(monkeypatch):
    """Singular covariances, of fewer images than features: LAPACK may not converge."""
    features = gaussian(30, 1), gaussian(40, 2)
    sums = [(x.sum(0), x.T @ x, torch.tensor(len(x))) for x in features]
    gaussians = [part for each in sums for part in mean_and_covariance(*each)]
    expected = float(frechet_distance(*gaussians))

    def fail(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    for name in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, fail)
    assert float(frechet_distance(*gaussians)) == pytest.approx(expected, rel=1e-9)


def test_closed_form_of_gaussians(network):
    # Samples with exactly diagonal covariances: the signs of a Hadamard matrix, scaled.
    signs = torch.tensor([[(-1.0) ** (r & c).bit_count() for c in range(1, 7)] for r in range(8)]).double()
    one, two = torch.arange(1, 7), torch.tensor([2, 0.5, 3, 1, 4, 2.5]).double()
    shift = torch.arange(6.0)
    unbiased = math.sqrt(8 / 7)
    expected = shift.square().sum() + (unbiased * (one - two)).square().sum()
    value = filled(network, signs * one, signs * two + shift).compute()
    assert float(value) == pytest.approx(float(expected), rel=1e-10)


def test_same_value_as_torch_fidelity(network):
    real, fake = gaussian(500, 1), gaussian(400, 2)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(real), fid_features_to_statistics(fake), False)
    value = filled(network, real, fake).compute()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)


def test_float32_features_keep_a_float64_result(network):
    real, fake = gaussian(300, 1, torch.float32), gaussian(300, 2, torch.float32)
    value = filled(network, real, fake).compute()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(float(filled(network, real.double(), fake.double()).compute()), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batch_size_and_order(network, batch):
    images = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = FrechetDistance(network)
    whole.update_real(images[:60])
    whole.update_fake(images[60:])
    parts = FrechetDistance(network)
    for part in images[60:].flip(0).split(batch):
        parts.update_fake(part)
    for part in images[:60].split(batch):
        parts.update_real(part)
    assert (parts.real_count, parts.fake_count) == (60, 40)
    assert float(parts.compute()) == pytest.approx(float(whole.compute()), rel=1e-6)


def _process(rank: int, directory: str, real, fake, reference) -> None:
    """One of two processes: uneven shares, and the reference both accumulated and loaded."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    share = slice(0, 130) if rank == 0 else slice(130, None)
    own = filled(Means().load(), real[share], fake[share])
    loaded = FrechetDistance(Means().load())
    loaded.load_gaussian(*mean_and_covariance(*reference.values()))
    loaded.update_features(fake[share], real=False)
    result = {"own": own.compute(), "loaded": loaded.compute(), "state": own.reference_state()}
    result["count"] = own.real_count
    torch.save(result, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(network, tmp_path):
    real, fake = gaussian(300, 1), gaussian(200, 2)
    alone = filled(network, real, fake)
    reference = alone.reference_state()
    # Forked, which spares two imports of torch; nothing here has started threads.
    context = torch.multiprocessing.get_context("fork")
    arguments = (str(tmp_path), real, fake, reference)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank, count in enumerate((130, 170)):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(result["own"]) == pytest.approx(float(alone.compute()), rel=1e-9)
        assert float(result["loaded"]) == pytest.approx(float(alone.compute()), rel=1e-9)
        torch.testing.assert_close(result["state"], reference)
        assert result["count"] == count  # the process's own again after the sum


def test_reference_round_trip_survives_reset(network):
    real, fake = gaussian(300, 1), gaussian(200, 2)
    full = filled(network, real, fake)
    loaded = FrechetDistance(network)
    loaded.load_gaussian(*mean_and_covariance(*full.reference_state().values()))
    for _ in range(2):
        loaded.reset()
        assert loaded.fake_count == 0
        loaded.update_features(fake, real=False)
        assert float(loaded.compute()) == pytest.approx(float(full.compute()), rel=1e-12)
    with pytest.raises(RuntimeError, match="loaded reference"):
        loaded.update_features(real, real=True)
    with pytest.raises(ValueError, match="reference statistics have shapes"):
        loaded.load_gaussian(torch.zeros(FEATURES), torch.zeros(2, 2))


def test_new_samples_and_a_new_reference_replace_the_cached_value(network):
    real, fake, more = gaussian(300, 1), gaussian(200, 2), gaussian(200, 3)
    distance = filled(network, real, fake)
    assert distance.compute() == filled(network, real, fake).compute()
    distance.update_features(more, real=False)
    both = torch.cat((fake, more))
    assert float(distance.compute()) == pytest.approx(float(filled(network, real, both).compute()), rel=1e-9)
    for reference in (gaussian(300, 4), gaussian(300, 5)):  # the root of the first must not serve the second
        full = filled(network, reference, both)
        distance.load_gaussian(*mean_and_covariance(*full.reference_state().values()))
        assert float(distance.compute()) == pytest.approx(float(full.compute()), rel=1e-9)


def test_fewer_images_than_features_warns_once(network):
    distance = filled(network, gaussian(10, 1), gaussian(5, 2))
    with pytest.warns(UserWarning, match="5 generated images for 6 features") as seen:
        distance.compute()
        distance.update_features(gaussian(1, 3)[:0], real=False)
        distance.compute()
    assert len(seen) == 1


def test_wrong_features_and_casts_are_refused(network):
    distance = FrechetDistance(network)
    with pytest.raises(ValueError, match=r"\(B, 6\)"):
        distance.update_features(torch.zeros(3, 5), real=True)
    with pytest.raises(ValueError, match="uint8"):
        distance.update_fake(torch.rand(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="float64"):
        distance.to(torch.bfloat16).update_features(torch.zeros(3, 6), real=True)


@pytest.mark.parametrize("real", [True, False])
def test_features_that_are_not_finite_give_no_distance(network, real):
    distance = filled(network, gaussian(10, 1), gaussian(10, 2))
    distance.update_features(torch.full((3, 6), math.nan), real=real)
    assert_user_error(r"not finite \(NaN\): the feature network's weights are damaged", distance.compute)
    assert_user_error("not finite", distance.reference_state)
    distance = filled(network, gaussian(10, 1), gaussian(10, 2))
    distance.reset()
    assert distance.not_finite == 0


def test_names():
    assert [count_suffix(n) for n in (2000, 50000, 512, 1500, 500, 1000, 1)] == [
        "2k",
        "50k",
        "512",
        "1500",
        "500",
        "1k",
        "1",
    ]
    assert metric_name("fid", 50000) == "fid_50k"
    assert metric_name("fd_effnet_lite0", 2000, raw=True) == "fd_effnet_lite0_2k_raw"
    with pytest.raises(ValueError):
        count_suffix(0)
