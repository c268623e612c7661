"""All metrics together: closed forms, processes, faults, references from ADM's files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_user_error
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.builders import Complete, Means, on_ranks, random_images, reference_of, score
from torch import nn
from torchmetrics import Metric

from aim_lightning.evaluation.image_sets import NpzImages
from aim_lightning.metrics import reference_statistics
from aim_lightning.metrics.feature_sets import KernelDistance, NeighbourMetrics, SampleFeatures
from aim_lightning.metrics.features import TorchFeatures
from aim_lightning.metrics.inception_score import InceptionScore, split_numbers
from aim_lightning.metrics.reference_statistics import ReferenceImages, ReferenceImagesBuilder, adm_gaussians
from aim_lightning.metrics.scores import Scores
from aim_lightning.utils.npz import NpzFile, write_npz

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    return Complete().load()


@pytest.fixture
def real(network):
    """Return the statistics of 40 reference images without labels."""
    return reference_of(network, random_images(40))


def test_three_processes_equal_one(network, tmp_path):
    images, real, labels = random_images(100), random_images(120, 1, 200), torch.arange(120) % 2
    alone = score(network, reference_of(network, real, labels), images)

    def work(rank):
        statistics = reference_of(network, real, labels, torch.arange(120)[rank::3])
        share = (slice(0, 70), slice(70, None), slice(0, 0))[rank]  # the last rank has no images at all
        return score(network, statistics, images, share, batch=11)

    assert len(alone) == 12
    for values in on_ranks(work, tmp_path, 3):
        assert values == pytest.approx(alone, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12_000), st.sampled_from(["adm", "torch_fidelity"]))
def test_every_image_has_a_split(classes, count, splitting):
    splits = split_numbers(count, splitting)
    assert len(splits) == count and int(splits.min()) >= 0
    sizes = splits.bincount()
    if splitting == "adm":
        assert (sizes[:-1] == 5000).all() and 0 < sizes[-1] <= 5000
    else:
        assert len(sizes) <= 10 and (count < 10 or int(sizes.max() - sizes.min()) <= 1)


def test_inception_score_of_any_batches_and_its_bounds():
    certain = 50 * nn.functional.one_hot(torch.arange(40) % 4, 8).double()
    for logits, expected in ((certain, 4.0), (torch.zeros(40, 8), 1.0)):
        score = InceptionScore(40, num_classes=8)
        for rows in torch.randperm(40).split(7):
            score.update(logits[rows], rows)
        assert float(score.compute()["mean"]) == pytest.approx(expected, rel=1e-9)
    part = InceptionScore(12_000, num_classes=8)  # of three splits only the second one gets images
    part.update(certain, torch.arange(5000, 5040))
    assert {name: float(value) for name, value in part.compute().items()} == pytest.approx({"mean": 4.0, "std": 0.0})
    score.update(certain[:1] * float("nan"), torch.tensor([1]))
    assert_user_error("not finite", score.compute)


def values_of(metric, features):
    metric.update(features, torch.arange(len(features)))
    return {name: float(value) for name, value in metric.compute().items()}


def test_kernel_distance_over_all_pairs_and_of_equal_sets():
    x, y = torch.randn(30, 5).double(), torch.randn(30, 5).double() + 1
    value = values_of(KernelDistance(y.float(), subsets=2), x.float())
    x, y = x.float().double(), y.float().double()

    def k(a, b):
        return float((a @ b / 5 + 1) ** 3)

    pairs = [(i, j) for i in range(30) for j in range(30)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (30 * 29)
    expected = within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 900
    assert value["mean"] == pytest.approx(expected, rel=1e-9) and value["std"] == pytest.approx(0, abs=1e-9)


def test_the_deviation_of_the_kernel_distance_is_that_of_all_its_subsets():
    x, y = torch.randn(30, 5), torch.randn(30, 5) + 1
    first = values_of(KernelDistance(y, subsets=1, subset_size=10), x)
    both = values_of(KernelDistance(y, subsets=2, subset_size=10), x)
    # Two values a and b deviate by |a - b| / 2 = |a - mean|, without Bessel's correction.
    assert both["std"] == pytest.approx(abs(first["mean"] - both["mean"]), rel=1e-9)
    assert first["std"] == 0 and both["std"] > 0


def test_precision_and_recall_at_their_ends():
    x = torch.randn(50, 4)
    same = values_of(NeighbourMetrics(x), x)
    assert same == {"precision": 1.0, "recall": 1.0, "density": same["density"], "coverage": 1.0}
    assert set(values_of(NeighbourMetrics(x), x + 1e4).values()) == {0.0}
    few = values_of(NeighbourMetrics(x), x[:1].repeat(10, 1))  # one good image ten times: its balls have radius 0
    assert few["precision"] == 1.0 and few["recall"] == 1 / 50


def test_density_and_coverage_equal_the_published_formulas():
    """As compute_prdc of github.com/clovaai/generative-evaluation-prdc, on whole matrices of distances."""
    real, fake = (np.random.default_rng(seed).normal(seed / 4, 1, (count, 6)) for seed, count in ((0, 60), (1, 45)))
    within = np.linalg.norm(real[:, None] - real[None], axis=-1)
    radii, between = np.sort(within, 1)[:, 3], np.linalg.norm(real[:, None] - fake[None], axis=-1)
    values = values_of(NeighbourMetrics(torch.from_numpy(real)), torch.from_numpy(fake))
    assert values["density"] == pytest.approx((between < radii[:, None]).sum(0).mean() / 3, rel=1e-6)
    assert values["coverage"] == pytest.approx((between.min(1) < radii).mean(), rel=1e-6)
    assert 0 < values["coverage"] < 1


def test_density_and_coverage_resist_an_outlier_and_see_missing_modes():
    torch.manual_seed(0)
    x, y = torch.randn(100, 4), torch.randn(100, 4)
    good = values_of(NeighbourMetrics(x), y)
    modes = torch.cat((x[:50], x[50:] + 100))  # two modes of 50 reference images
    concentrated = values_of(NeighbourMetrics(x), 0.2 * y)
    assert concentrated["density"] > 1.5 and concentrated["coverage"] < good["coverage"]
    lost = values_of(NeighbourMetrics(modes), y)
    assert lost["precision"] > 0.8 and lost["coverage"] <= 0.5
    # The ball of one reference outlier contains every shifted sample: precision is fooled, the others are not.
    shifted = values_of(NeighbourMetrics(torch.cat((x, torch.full((1, 4), 30.0)))), y + 20)
    assert shifted["precision"] == 1 and shifted["density"] < 0.4 and shifted["coverage"] == 1 / 101


@pytest.mark.parametrize("metric", [KernelDistance, NeighbourMetrics])
def test_comparisons_are_metrics_that_can_be_filled_again_and_in_any_order(metric):
    x, real = torch.randn(40, 4), torch.randn(50, 4) + 0.5
    one = metric(real, sync_on_compute=False)
    assert isinstance(one, Metric) and not one.sync_on_compute
    first = values_of(one, x)
    one.reset()
    for rows in torch.randperm(40).split(7):
        one.update(x[rows], rows)
    assert {name: float(value) for name, value in one.compute().items()} == first
    one.update(x[:1], torch.tensor([3]))
    with pytest.raises(ValueError, match="twice"):
        one.compute()
    one.update(x[:1] * float("nan"), torch.tensor([41]))
    assert_user_error("not finite", one.compute)


def test_chosen_rows_depend_on_their_number_only():
    kept = reference_statistics.chosen_rows(1000, 100)
    assert int(kept.sum()) == 100 and torch.equal(kept, reference_statistics.chosen_rows(1000, 100))
    assert 30 < int(kept[:500].sum()) < 70 and int(reference_statistics.chosen_rows(50, 100).sum()) == 50


def test_features_are_sorted_and_an_image_counts_once():
    metric, rows = SampleFeatures(3), torch.randn(20, 3)
    for part in torch.randperm(20).split(6):
        metric.update(rows[part], part)
    assert torch.equal(metric.compute(), rows)
    metric.update(rows[:1], torch.tensor([5]))
    with pytest.raises(ValueError, match="twice"):
        metric.compute()


def test_wrong_images_are_refused(network, real):
    scores = Scores(network, real, 10)
    grey = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for wrong in (torch.rand(2, 3, 8, 8), grey, torch.full((1, 3, 8, 8), float("nan"))):
        with pytest.raises(ValueError):
            scores.update(wrong, torch.arange(len(wrong)))
    assert_user_error("need at least two images; the data gave 1", ReferenceImagesBuilder, network, 1)


def test_fewer_images_than_features_names_the_bias(network):
    for real, fake, counts in ((40, 5, "5 generated images for 6"), (5, 40, "5 real images for 6")):
        kept = reference_of(network, random_images(real)).tensors()  # as read from the cache
        message = f"{counts} features; the covariance is singular and the distance too high"
        with pytest.warns(UserWarning, match=message):
            score(network, ReferenceImages.from_tensors(kept, {}), random_images(fake))


PUBLISHED = ["fid", "sfid", "is", "is_std", "kid", "kid_std"]
PUBLISHED += ["precision", "recall", "density", "coverage", "mind_inception"]
STAND_IN = [f"{name}_means" for name in ("fd", "kd", "precision", "recall", "density", "coverage", "mind")]


@pytest.mark.parametrize(("network", "names", "distances"), [(Complete, PUBLISHED, 4), (Means, STAND_IN, 1)])
@pytest.mark.parametrize("labels", [None, torch.arange(40) % 2])
def test_names_are_known_before_scoring_and_differ_from_those_of_papers(network, names, distances, labels):
    network = network().load()
    real, agreement = reference_of(network, random_images(40), labels), [] if labels is None else ["class_agreement"]
    values = {}
    for compare, expected in ((True, names + agreement), (False, names[:distances] + agreement)):
        values[compare] = score(network, real, random_images(30), compare=compare)
        assert Scores(network, real, 30, compare=compare).names() == list(values[compare]) == expected
    assert values[False] == pytest.approx({name: values[True][name] for name in values[False]})


def test_the_protocol_of_an_early_end_is_that_of_fewer_images(network, real):
    scores, few = (Scores(network, real, count) for count in (30, 12))
    kernel = {"subsets": 100, "subset_size": 30, "seed": 2020, "kernel": "(x.y / F + 1)^3"}
    mind = {"projections": 1000, "seed": 2020, "scale": "3 x 6"}
    assert scores.protocol() == {
        "features": network.protocol(),
        "reference": {"kind": "test"},
        "num_images": 30,
        "inception_score": {"splitting": "adm", "classes": 1008},
        "kernel_distance": kernel | {"reference_pictures": 40},
        "neighbours": {"k": 3, "reference_pictures": 40, "distances": "squared Euclidean, float64"},
        "mind": mind | {"images_per_side": 30, "reference_images": 40},
    }
    assert scores.protocol(12) == few.protocol() and few.protocol()["kernel_distance"]["subset_size"] == 12


def test_a_reference_of_two_images_without_labels_has_no_probe(network):
    images = random_images(2)
    real = reference_of(network, images)
    assert real.probe is None and real.count == 2 and torch.equal(real.features, network.outputs(images)["features"])


def test_real_images_survive_a_file(network):
    real = reference_of(network, random_images(40), torch.arange(40) % 2)
    again = ReferenceImages.from_tensors(real.tensors(), {"kind": "test"})
    assert (again.source, again.count) == ({"kind": "test"}, 40)
    assert score(network, again, random_images(30)) == score(network, real, random_images(30))


def adm_file(path, real, **changes):
    (mu, sigma), (mu_s, sigma_s) = (tuple(v.numpy() for v in real.gaussians[o]) for o in ("features", "spatial"))
    arrays = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s} | changes
    nhwc = random_images(40).permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=nhwc, **arrays)
    return NpzFile(path)


def test_adm_reference_gives_the_same_distances(network, real, tmp_path):
    again = ReferenceImages(adm_gaussians(adm_file(tmp_path / "ref.npz", real), network), real.features, None, {})
    expected = score(network, real, random_images(30, 2))
    assert score(network, again, random_images(30, 2)) == pytest.approx(expected, rel=1e-12)


WRONG_STATISTICS = [
    ({"mu_s": np.zeros(4)}, r"mu_s: float64 \(4,\), expected finite floats \(3,\)"),
    ({"sigma": np.full((6, 6), np.nan)}, "sigma: float64"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_STATISTICS)
def test_adm_reference_of_another_shape_or_network_is_refused(network, real, tmp_path, changes, message):
    assert_user_error(message, adm_gaussians, adm_file(tmp_path / "ref.npz", real, **changes), network)


def test_adm_statistics_are_for_the_published_inception_alone(network, real, tmp_path):
    """Other weights have features of the same shape; for them the file's images are used."""
    file, other = adm_file(tmp_path / "ref.npz", real), Complete().load()
    other.metric_name = "fd_inception_1a2b3c4d"
    assert set(adm_gaussians(file, network)) == {"features", "spatial"}
    assert adm_gaussians(file, other) == adm_gaussians(file, Means().load()) == {}
    np.savez(tmp_path / "alone.npz", mu=np.zeros(6), sigma=np.eye(6))
    message = r"published Inception only, and no images \(arr_0\) for fd_inception_1a2b3c4d"
    assert_user_error(message, adm_gaussians, NpzFile(tmp_path / "alone.npz"), other)


def test_npz_rows_are_mapped_decompressed_and_written(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", arr_0=rows, other=np.arange(3))
    np.savez_compressed(tmp_path / "packed.npz", arr_0=rows)
    write_npz(tmp_path / "written.npz", {"arr_1": np.arange(23)}, {"arr_0": (rows.shape, "u1", (rows[:20], rows[20:]))})
    for name in ("plain", "packed", "written"):
        reader = NpzFile(tmp_path / f"{name}.npz").rows("arr_0")
        assert reader.shape == rows.shape and reader.dtype == np.uint8
        ranges = [range(2, 5), range(10, 16), range(16, 23)]
        for part, taken in zip(ranges, reader.batches(ranges), strict=True):
            np.testing.assert_array_equal(taken, rows[part.start : part.stop])
    with np.load(tmp_path / "written.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["arr_0"], rows)
        np.testing.assert_array_equal(file["arr_1"], np.arange(23))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.999])
def test_truncated_npz_is_one_line(tmp_path, compress, keep):
    path, buffer = tmp_path / "cut.npz", io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, arr_0=np.random.default_rng(0).random(5000))
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * keep)])
    assert_user_error("truncated, damaged or no", lambda: NpzFile(path).array("arr_0"))


@pytest.mark.parametrize("offset", [60, 124, 166, 243, 400, 100_000])
def test_damage_inside_an_npz_is_noticed(tmp_path, offset):
    """In the tables of the compressed stream, in its data, and where it decompresses to other values."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, arr_0=np.random.default_rng(0).integers(0, 99, (500, 10, 10, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = bytes(byte ^ 255 for byte in content[offset : offset + 8])
    path.write_bytes(content)
    file = NpzFile(path)
    for read in (file.array, lambda name: list(file.rows(name).batches([range(0, 500)]))):
        assert_user_error("damaged", read, "arr_0")


@pytest.mark.filterwarnings("error:.*not writable")
def test_damage_inside_a_plain_npz_is_noticed_by_its_checksum(tmp_path):
    """Its rows are mapped from the disk, without any other check."""
    path, rows = tmp_path / "x.npz", np.zeros((100, 10, 10, 3), np.uint8)
    np.savez(path, arr_0=rows)
    assert len(NpzImages(path).identity()["sha256"]) == 64
    content = bytearray(path.read_bytes())
    content[5000:5064] = bytes(64 * [255])
    path.write_bytes(content)
    assert_user_error(r"x\.npz, array arr_0, is truncated, damaged", NpzImages(path).identity)
    np.savez_compressed(path, arr_0=rows)
    ((images, _, _),) = NpzImages(path).batches([range(0, 100)])
    assert images.shape == (100, 3, 10, 10)


def test_pickled_objects_are_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "trap.npz", arr_0=np.array([Trap()], dtype=object))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("arr_0.npy", pickle.dumps(Trap()))
    for name, message in (("trap", "pickled objects"), ("raw", "damaged|pickled")):
        file = NpzFile(tmp_path / f"{name}.npz")
        for read in (file.array, file.rows):
            assert_user_error(message, read, "arr_0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_any_torch_network_gives_a_distance_with_its_name(tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "net.pth")
    options = {"factory": "torchvision.models.squeezenet1_1", "weights": str(tmp_path / "net.pth"), "name": "squeeze"}
    network = TorchFeatures(**options, num_features=512, input_size=64, layer="features").load()
    values = score(network, reference_of(network, random_images(8)), random_images(6), compare=False)
    assert set(values) == {"fd_squeeze"} and network.protocol()["factory"] == "torchvision.models.squeezenet1_1()"
    wrong = TorchFeatures(**options, num_features=5, input_size=64, layer="features").load()
    assert_user_error("num_features", wrong, random_images(1))
    for changes, message in (
        ({"layer": "nowhere"}, "no module"),
        ({"factory": "torchvision.nothing"}, "cannot be imported"),
        ({"options": {"num_class": 10}}, "squeezenet1_1 refuses its options: .*num_class"),
        ({"factory": "torchvision.models.resnet18"}, "does not fit"),
    ):
        assert_user_error(message, TorchFeatures(**options | {"num_features": 5} | changes).load)
