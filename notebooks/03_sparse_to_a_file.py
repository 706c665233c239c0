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
# A network for digits has hundreds of thousands of weights. How many does it *need*? In this notebook
#
# 1. we look at the one formula that makes Sparse VD work, a KL divergence that rewards noise,
# 2. train a LeNet-300-100 whose every weight learns its own dropout rate,
# 3. see which weights have become pure noise, and remove them: first the weights, then whole units,
# 4. give what is left a handful of distinct values, and write it to a file a few hundred times smaller than
#    the weights.
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
# Every weight has a posterior of its own, $q(w) = \mathcal{N}(\theta, \alpha\theta^2)$: a mean, and noise whose size is
# given relative to the mean. Under the log-uniform prior, $p(w) \propto 1/|w|$, the KL divergence depends on $\alpha$
# alone,
#
# $$\mathrm{KL}(\alpha) = 2\int_0^{\sqrt{1/2\alpha}} D(s)\,ds, \qquad D \text{ the Dawson function},$$
#
# and falls to zero as $\alpha \to \infty$. A weight that the data do not need is free to become noise, and noise is
# free of charge. (The published approximation by a sigmoid is shown for comparison: it is off by up to 0.009 nats.)

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
# `lenet_300_100` is the network with that prior on its three weight matrices. The KL term sets in slowly: at full
# strength from the first step it would drop every weight before the network has learned anything.

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
# `prune` sets the noise to zero and then looks at the graph of the network: a hidden unit that nothing reaches is a
# constant, which moves into the next bias; one that nobody reads can go; so can pixels. What comes back is an ordinary
# module, physically smaller, that computes the same.

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
axes[0].set(xlabel="pixel", ylabel="hidden unit", title="what is left of the first layer")
used = (weights != 0).sum(0).view(8, 8)
axes[1].imshow(used, cmap="viridis")
axes[1].set(title="how often a pixel is read", xticks=[], yticks=[])
# %% [markdown]
# ## Few values, few bytes
#
# The posterior also says how precisely each weight is known. `quantize` gives every layer eight values, by k-means in
# which an error counts by the weight's own posterior variance; `fine_tune` lets these values learn on, towards what the
# average of the posterior's networks predicts. The file holds the graph, where the weights are, which value each has,
# and a checksum, all through one arithmetic coder; it decodes to the same logits, bit for bit.

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
print(
    f"\n{total:,} weights of 4 bytes, {path.stat().st_size} bytes: {4 * total / path.stat().st_size:.0f} times smaller"
)
print(f"bit for bit the same logits: {identical}; accuracy {accuracy:.1%}")

# %% [markdown]
# ## What is not shown by this
#
# The log-uniform prior is improper, and what it gives is a penalty that has the form of a KL divergence rather than a
# posterior (Hron et al. 2018). `priors.AutomaticRelevance()` is a relative with a proper prior and the same guide;
# `priors.Horseshoe` is proper too, and samplers can check on it. And eight by eight pixels are few: the same five calls
# on MNIST are `pyro-bnn reproduce sparse-vd`.
