"""A mixture of Gaussians with the moments of a set of images: where a sampler may start."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from imagelab.datasets import random_subset, signed


def fit_gaussians(images: torch.Tensor, clusters: int, seed: int, rank: int = 32) -> dict:
    """Gaussians with the moments of `images` (N, C, H, W) uint8, on [-1, 1].

    k-means groups the images; each group has its mean and its covariance F·Fᵀ, of which the `rank`
    leading directions are kept. Returns plain tensors, fit for a checkpoint: `mean` (K, D),
    `factor` F (K, D, rank), `share` of the images (K,).
    """
    from sklearn.cluster import KMeans

    x = signed(images).flatten(1)
    few = x[random_subset(len(x), 8000, "k-means").to(x.device)].cpu().numpy()
    k_means = KMeans(min(clusters, len(few)), n_init=1, random_state=seed).fit(few)
    group = torch.from_numpy(k_means.predict(x.cpu().numpy())).to(x.device)
    means, factors, shares = [], [], []
    with torch.random.fork_rng(devices=[]):  # pca_lowrank draws from the global generator
        torch.manual_seed(seed)
        for k in group.unique().tolist():
            members = x[group == k]
            _, s, v = torch.pca_lowrank(members, q=min(rank, *members.shape))
            means.append(members.mean(dim=0))
            factors.append(F.pad(v * s / math.sqrt(max(len(members) - 1, 1)), (0, rank - len(s))))
            shares.append(len(members) / len(x))
    return {
        "mean": torch.stack(means),
        "factor": torch.stack(factors),
        "share": torch.tensor(shares),
    }


def draw_gaussians(gaussians: dict, n: int, rng: torch.Generator) -> torch.Tensor:
    """`n` vectors (n, D) drawn from what `fit_gaussians` returned."""
    mean, factor, share = (gaussians[key] for key in ("mean", "factor", "share"))
    k = torch.multinomial(share.cpu(), n, replacement=True, generator=rng).to(mean.device)
    z = torch.randn(n, factor.shape[2], generator=rng).to(mean.device)
    x = mean[k]
    for group in k.unique().tolist():
        x[k == group] += z[k == group] @ factor[group].T
    return x
