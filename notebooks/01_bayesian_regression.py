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
# # 1. Bayesian regression, end to end
#
# A Bayesian neural network answers two questions at once: *what is y at x*, and *how certain is
# the answer*. In this notebook we
#
# 1. start with linear regression, where the posterior is known in closed form, and see that
#    variational inference finds it, and what a factorised posterior leaves out;
# 2. declare a small neural network as a Pyro program and look at the functions that its **prior**
#    makes plausible;
# 3. fit it, and compare prior and **posterior**: the band should be narrow where there are data
#    and wide where there are none.
#
# It runs in about a minute on a laptop, without a network connection.

# %%
import matplotlib.pyplot as plt
import pyro
import torch

from pyro_bnn import fit
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression

torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Linear regression, where the truth is known
#
# The model is $y_n = w^\top x_n + b + \epsilon_n$ with $w, b \sim \mathcal N(0, 1)$ and
# $\epsilon_n \sim \mathcal N(0, \sigma^2)$, where $\sigma$ is known. As a Pyro program it is
# `linear_regression` in `models/regression.py`:
#
# ```python
# weight = pyro.sample("weight", dist.Normal(x.new_zeros(inputs), prior_scale).to_event(1))
# bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), prior_scale))
# with pyro.plate("data", num_data, subsample=range(len(x))):
#     pyro.sample("y", dist.Normal(x @ weight + bias, noise), obs=y)
# ```
#
# With the design matrix $\Phi = [x, 1]$ the posterior is Gaussian with precision $\Lambda =
# \Phi^\top\Phi/\sigma^2 + I$ and mean $\Lambda^{-1}\Phi^\top y/\sigma^2$. The best *factorised*
# Gaussian has the same mean, but its variances are $1/\Lambda_{ii}$: those of each parameter given
# all others.
#
# **Before you run it:** the inputs below all lie between 1 and 3. Will the factorised posterior be
# too certain or too uncertain of the slope?

# %%
noise = 0.5
x = 1 + 2 * torch.rand(40, 1)
y = 0.7 * x.squeeze(1) - 0.4 + noise * torch.randn(40)

model = linear_regression(num_data=40, noise=noise)
result = fit(
    model,
    MeanField(model, x, y),
    (x, y),
    epochs=1500,
    learning_rate=lambda epoch: 0.05 * (1 - epoch / 1500),
    progress=False,
)

phi = torch.cat([x, torch.ones(40, 1)], 1)
precision = phi.T @ phi / noise**2 + torch.eye(2)
mean = torch.linalg.solve(precision, phi.T @ y / noise**2)
exact = precision.inverse().diagonal().sqrt()
factorised = precision.diagonal().rsqrt()

moments = result.posterior.moments()
fitted_mean = torch.stack([moments["weight"][0][0], moments["bias"][0]])
fitted_sd = torch.stack([moments["weight"][1][0], moments["bias"][1]]).sqrt()
print("            slope    intercept")
for label, row in [
    ("exact mean", mean),
    ("fitted mean", fitted_mean),
    ("exact sd", exact),
    ("best factorised sd", factorised),
    ("fitted sd", fitted_sd),
]:
    print(f"{label:20s}{row[0]:8.3f}{row[1]:12.3f}")
assert torch.allclose(fitted_mean, mean, atol=0.05)
assert torch.allclose(fitted_sd, factorised, rtol=0.1)

# %% [markdown]
# The mean is right. The standard deviations are those of the best factorised Gaussian, which are
# several times too small: slope and intercept are strongly correlated here, and a factorised
# posterior cannot represent correlations. Remember this whenever you see a mean-field band.
#
# ## A neural network as a Pyro program
#
# The next model is a network with one hidden layer of 32 rectified linear units and priors over
# all its weights. The data have a gap in the middle.


# %%
def truth(x):
    return torch.sin(3 * x) * (0.5 + 0.3 * x)


x = torch.cat([torch.linspace(-2, -0.6, 40), torch.linspace(0.6, 2, 40)])[:, None]
y = truth(x).squeeze(1) + 0.1 * torch.randn(80)
grid = torch.linspace(-3.5, 3.5, 200)[:, None]

model = hidden_layer_regression(num_data=80, noise=0.1)

# %% [markdown]
# Which functions does the **prior** make plausible? `pyro.infer.Predictive` runs the program and
# draws weights from it.

# %%
prior = pyro.infer.Predictive(model, num_samples=100, return_sites=("_RETURN", "y"))(grid)
prior_functions = prior["_RETURN"]
print("sites:", sorted(pyro.poutine.trace(model).get_trace(grid).stochastic_nodes))

# %% [markdown]
# ## Fit
#
# `MeanField` gives every site its own Gaussian (positive sites a log-normal). `fit` maximises the
# evidence lower bound,
#
# $$\mathcal L = \mathbb E_{q(w)} \log p(y \mid x, w) - \mathrm{KL}(q(w) \,\|\, p(w)),$$
#
# and leaves Pyro's global parameter store alone. Local reparameterization is on by default: where
# a layer needs only $x^\top w$ for a Gaussian $w$, its output is drawn instead of the weight,
# independently for every example.

# %%
guide = MeanField(model, x, y, init_scale=0.05)
epochs = 1500
result = fit(
    model,
    guide,
    (x, y),
    epochs=epochs,
    learning_rate=lambda epoch: 0.03 * (1 - epoch / epochs),
    seed=1,
)
posterior = result.posterior
history = result.history
print(f"data term {history['data'][-1]:.3f}, KL {history['kl'][-1]:.3f} nats per datum")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
axes[0].plot(history["epoch"], history["data"], lw=0.5)
axes[0].set(
    title="data term: minus the expected log-likelihood",
    xlabel="epoch",
    ylabel="nats per datum",
    ylim=(-1, 3),
)
axes[1].plot(history["epoch"], history["kl"], lw=0.5, color="C1")
axes[1].set(title="KL to the prior", xlabel="epoch", ylabel="nats per datum")
figure.tight_layout()

# %% [markdown]
# ## Bands: prior against posterior
#
# `predict` averages the *distributions* that the drawn networks predict. The variance of the
# average has two parts: **aleatoric**, the noise, which more data would not reduce, and
# **epistemic**, the uncertainty of the weights, which more data would reduce.

# %%
prediction = posterior.predict(grid, draws=200)
lower, upper = prediction.interval(0.9)
functions = torch.cat([part["mean"] for part in posterior.components(grid, draws=20)])

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True)
line = grid.squeeze(1)
axes[0].plot(line, prior_functions[:20].T, color="C7", lw=0.7)
low, high = prior["y"].quantile(0.05, dim=0), prior["y"].quantile(0.95, dim=0)
axes[0].fill_between(line, low, high, color="C7", alpha=0.25, lw=0)
axes[0].set(
    title="prior: 20 functions and the 90 % band of y", ylim=(-5, 5), xlabel="x", ylabel="y"
)
axes[1].fill_between(line, lower, upper, color="C0", alpha=0.25, lw=0, label="90 % band of y")
axes[1].plot(line, functions.T, color="C0", lw=0.5, alpha=0.6)
axes[1].plot(line, truth(line), "k--", lw=1, label="truth")
axes[1].plot(x.squeeze(1), y, "k.", ms=3, label="data")
axes[1].set(title="posterior", ylim=(-5, 5), xlabel="x")
axes[1].legend(loc="lower left", frameon=False)
figure.tight_layout()

# %% [markdown]
# The posterior follows the data and fans out on both sides of them. In the gap it does not: it is
# as certain there as at the data, although it has seen none. The factorised posterior is the
# reason again. It cannot represent how weights vary together, so weights that the data determine
# on both sides of the gap are determined inside it as well.

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.stackplot(
    line,
    prediction.aleatoric,
    prediction.epistemic,
    labels=["aleatoric: noise", "epistemic: weights"],
    colors=["C1", "C0"],
    alpha=0.7,
)
axis.set(
    title="where the variance of y comes from",
    xlabel="x",
    ylabel="variance",
    yscale="log",
    ylim=(5e-3, None),
)
axis.legend(frameon=False)

# %% [markdown]
# ## In numbers

# %%
near = prediction.epistemic[(line.abs() > 0.6) & (line.abs() < 2)].mean()
far = prediction.epistemic[line.abs() > 3].mean()
gap = prediction.epistemic[line.abs() < 0.4].mean()
print(f"epistemic variance at the data {near:.4f}, far away {far:.4f}, in the gap {gap:.4f}")
assert far > 3 * near
lower, upper = posterior.predict(x).interval(0.9)
covered = ((lower < y) & (y < upper)).float().mean()
print(f"the 90 % band holds {covered:.0%} of the data")
assert covered > 0.8

# %% [markdown]
# ## Exercises
#
# 1. Set the noise to 0.3. What happens to the band? Then leave `noise` out: it gets a prior, and a
#    posterior in `posterior.sample(1000)["noise"]`. A factorised posterior often takes
#    structure for noise; try several seeds.
# 2. Pass `reparameterize=False` to `fit` and compare the curves of the data term: which one is
#    noisier?
# 3. Fit a stock Pyro guide, `pyro.infer.autoguide.AutoLowRankMultivariateNormal(model)`, with the
#    same `fit`. Is the gap wider?
