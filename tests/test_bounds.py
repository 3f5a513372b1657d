from __future__ import annotations

import pytest
import torch

import mlp_diffusion as ddpm
from imagelab.data.datasets import signed
from imagelab.report import bounds
from imagelab.report.results import start_result
from imagelab.setup.runtime import generator
from imagelab.setup.settings import settings_dict
from imagelab.techniques.likelihood import fitted_variances, variational_bound


def estimator(model: ddpm.Denoiser) -> bounds.Estimator:
    weight = ddpm.weight_on_x0(model.schedule, "noise-variance")
    return bounds.Estimator(model.estimate, model.schedule, weight)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stripes) -> ddpm.Denoiser:
    path = tmp_path_factory.mktemp("trained") / "a.pth"
    return ddpm.train(ddpm.Config(batch_size=32, epochs=1), stripes, path).model


@pytest.mark.parametrize("how", ["clip", "none"])
def test_the_bound_is_that_of_the_sampler(how, stripes):
    """With --keep-in-range clip the estimate is clipped in the bound, as it is in sampling."""
    torch.manual_seed(0)
    model = ddpm.build(settings_dict(ddpm.Config(keep_in_range=how)), (1, 28, 28))
    with torch.no_grad():
        model.mlp[-1].bias += 3  # far outside
    found = bounds.bound_of(estimator(model), stripes.test_images, seed=0)

    def predict_x0(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x0 = model(x_t, t)
        return x0.clamp(-1, 1) if how == "clip" else x0

    x0, rng = signed(stripes.test_images).flatten(1), generator(0, "bound")
    expected = variational_bound(predict_x0, model.schedule, x0, rng)
    assert torch.equal(found.terms, expected.terms) and found.prior == expected.prior
    assert found.dimensions == 784 and len(found.per_image) == len(stripes.test_images)


def test_fitted_variances_are_the_best_for_the_images_that_they_are_fitted_to(stripes, trained):
    """Larger or smaller ones give a worse bound."""
    it, images = estimator(trained), stripes.images[:200]
    x0, rng = signed(images).flatten(1), torch.Generator().manual_seed(0)
    fitted = fitted_variances(it.estimate, it.schedule, x0, rng)
    best = bounds.bound_of(it, images, 0, fitted).terms
    assert best.sum() < bounds.bound_of(it, images, 0).terms.sum() / 2
    for factor in (0.7, 1.4):
        other = bounds.bound_of(it, images, 0, fitted * factor).terms
        assert (other > best).all()


def test_the_plotted_error_is_that_of_the_estimate(stripes, trained):
    """It is taken from the terms of the bound; here it is measured."""
    it = estimator(trained)
    bound = bounds.bound_of(it, stripes.test_images, seed=0)
    figure = bounds.plot_errors({"it": it}, {"it": bound}, 0.3)
    (noise, errors), (_, weights) = (axis.get_lines()[0].get_data() for axis in figure.axes)
    x0, rng = signed(stripes.test_images).flatten(1), torch.Generator().manual_seed(1)
    for k in (1, 20, 49):
        eps, times = torch.randn(x0.shape, generator=rng), torch.full((len(x0),), k)
        with torch.no_grad():
            x0_hat, _ = trained.x0_and_eps(trained.schedule.q_sample(x0, times, eps), times)
        error = (x0_hat - x0).square().mean().item()
        assert errors[k - 1] == pytest.approx(error, rel=0.1)
        level = (1 - trained.schedule.alpha_bar[k]).sqrt().item()
        assert noise[k - 1] == pytest.approx(level, abs=1e-6)
    assert weights.sum() == pytest.approx(1)
    assert list(figure.axes[0].get_lines()[1].get_ydata()) == [0.3, 0.3]


def test_the_terms_are_plotted_with_both_ends(stripes, trained):
    bound = bounds.bound_of(estimator(trained), stripes.test_images[:20], seed=0)
    (axis,) = bounds.plot_terms({"it": bound}).axes
    (t, terms), (ends, values) = (line.get_data() for line in axis.get_lines())
    assert list(t) == list(range(1, 50)) and list(terms) == bound.terms[1:].tolist()
    assert list(ends) == [0, 50] and list(values) == [bound.reconstruction, bound.prior]


def test_what_is_reported_of_several_models(stripes, trained, tmp_path):
    """The last one stands for itself and with fitted variances, in the table and as metrics."""
    config = ddpm.Config(output_dir=tmp_path)
    result = start_result("a", "", "", config, "p", torch.device("cpu"), stripes)
    result.folder.mkdir(exist_ok=True)
    assert bounds.lessons(result) == []
    both = {"one": estimator(trained), "other": estimator(trained)}
    bounds.report_bounds(result, both, stripes, 50, seed=0)
    (table,) = result.tables
    assert [row[0] for row in table["rows"]] == ["one", "other", "other, fitted variances"]
    usual, fitted = (
        result.metrics[f"{k}: bits per dimension"] for k in (bounds.USUAL, bounds.FITTED)
    )
    assert fitted.value < usual.value and usual.n == 50
    assert [usual.value, fitted.value] == [row[-1] for row in table["rows"][1:]]
    assert {"errors.png", "bound.png"} <= {entry["path"] for entry in result.files}
    assert len(bounds.lessons(result)) == 1
