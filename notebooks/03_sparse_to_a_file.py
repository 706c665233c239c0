# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Sparse variational dropout, from the formula to a file
#
# A network for digits has hundreds of thousands of weights. How many does it *need*? In this
# notebook we
#
# 1. look at the formula behind Sparse VD, a KL divergence that rewards noise;
# 2. train a LeNet-300-100 in which every weight learns its own dropout rate;
# 3. find the weights that have become noise and remove them, and then whole units;
# 4. replace the remaining weights by a handful of distinct values, and write them to a file that
#    is a few hundred times smaller than the original weights.
#
# It runs in under two minutes on a laptop, without a network connection.

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from pyro_bnn import compression, fit, linear_warmup
from pyro_bnn.datasets import digits as load_digits
from pyro_bnn.distributions import kl_log_uniform, kl_log_uniform_approximate
from pyro_bnn.guides import SparseVariationalDropout
from pyro_bnn.models import lenet_300_100

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The formula
#
# Every weight has its own posterior $q(w) = \mathcal{N}(\theta, \alpha\theta^2)$: a mean, and
# noise relative to the mean. Under the log-uniform prior, $p(w) \propto 1/|w|$, the KL divergence
# depends only on $\alpha$,
#
# $$\mathrm{KL}(\alpha) = 2\int_0^{\sqrt{1/2\alpha}} D(s)\,ds,
# \qquad D \text{ the Dawson function},$$
#
# and decreases to zero as $\alpha \to \infty$. A weight that the data do not need can become
# noise, and noise costs nothing. (The published approximation by a sigmoid, shown for comparison,
# differs by up to 0.009 nats.)

# %%
log_alpha = torch.linspace(-8, 8, 200)
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(log_alpha, kl_log_uniform(log_alpha), label="exact")
axes.plot(log_alpha, kl_log_uniform_approximate(log_alpha), "--", label="published approximation")
axes.axvline(3, color="0.6", linewidth=1)
axes.text(3.2, 3.5, "dropped from here on:\nbinary dropout of rate 0.95", fontsize=8)
axes.set(xlabel=r"$\log\alpha$", ylabel="KL (nats per weight)")
axes.legend(frameon=False)
# %% [markdown]
# ## The posterior
#
# `lenet_300_100` is the network with that prior on its three weight matrices. The weight of the KL
# term increases slowly: at full weight from the first step it would remove every weight before the
# network has learned anything.

# %%
torch.manual_seed(0)
digits = load_digits()
model = lenet_300_100(len(digits.x_train), inputs=64)
guide = SparseVariationalDropout(model)
result = fit(
    model,
    guide,
    digits.train,
    epochs=150,
    batch_size=100,
    learning_rate=lambda epoch: 3e-3 * min(1.0, 2 - epoch / 75),
    kl_weight=linear_warmup(5, 100),
    seed=0,
    progress=False,
)

figure, axes = plt.subplots(figsize=(5, 3))
for name, values in result.guide.log_alpha().items():
    axes.hist(values.flatten(), bins=80, range=(-8, 8), histtype="step", density=True, label=name)
axes.axvline(3, color="0.6", linewidth=1)
axes.set(xlabel=r"$\log\alpha$", yticks=[], title="signal on the left, noise on the right")
axes.legend(frameon=False)
# %% [markdown]
# ## A smaller network
#
# `prune` sets weights that are noise to zero, then simplifies the graph of the network: a hidden
# unit without inputs is a constant, which moves into the next bias; a unit without outputs is
# removed, and so are pixels that no unit reads. The result is an ordinary module, physically
# smaller, that computes the same function.

# %%
pruned = compression.prune(result.posterior)
print(pruned)

x, y = digits.test
with torch.no_grad():
    same = torch.allclose(pruned.module(x), pruned.masked(x), atol=1e-5)
    accuracy = (pruned.module(x).argmax(1) == y).double().mean()
print(f"\nthe same outputs as the masked network: {same}; accuracy {accuracy:.1%}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), width_ratios=[3, 1])
weights = pruned.masked.fc1.weight.detach()
axes[0].imshow(weights != 0, aspect="auto", cmap="Greys", interpolation="none")
axes[0].set(xlabel="pixel", ylabel="hidden unit", title="remaining weights of the first layer")
used = (weights != 0).sum(0).view(8, 8)
axes[1].imshow(used, cmap="viridis")
axes[1].set(title="units that read a pixel", xticks=[], yticks=[])
# %% [markdown]
# ## Few values, few bytes
#
# The posterior also determines the precision that each weight needs. `quantize` finds eight values
# for every layer by k-means, with errors weighted by the inverse posterior variance; `fine_tune`
# trains these values towards the average prediction of the posterior. The file holds the graph,
# the positions of the weights, the value of each and a checksum, all coded by one arithmetic
# coder. It decodes to the same logits, bit for bit.

# %%
teacher = result.posterior.predict(digits.x_train).mean
quantised = compression.quantize(pruned, levels=8)
tuned = compression.fine_tune(
    quantised,
    digits.train,
    teacher=teacher,
    epochs=100,
    batch_size=100,
    start=pruned,
    progress=False,
)
path = Path(mkdtemp()) / "digits.pbnn"
print(compression.save(tuned, path))

network = compression.load(path)
with torch.no_grad():
    identical = torch.equal(network(x), tuned.module(x))
    accuracy = (network(x).argmax(1) == y).double().mean()
total = sum(layer.total for layer in pruned.report)
size = path.stat().st_size
print(f"\n{total:,} weights of 4 bytes; the file has {size} bytes")
print(f"{4 * total / size:.0f} times smaller")
print(f"bit for bit the same logits: {identical}; accuracy {accuracy:.1%}")

# %% [markdown]
# ## What this does not show
#
# The log-uniform prior is improper: the objective is a penalty with the form of a KL divergence
# rather than a bound for a posterior (Hron et al. 2018). `priors.AutomaticRelevance()` is a proper
# relative with the same guide; `priors.Horseshoe` is proper too and can be checked with a sampler.
# Images of eight by eight pixels are small: `pyro-bnn reproduce sparse-vd` makes the same calls on
# MNIST.
