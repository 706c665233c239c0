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
# # 2. Variational inference against MCMC
#
# Variational inference (VI) and Markov chain Monte Carlo (MCMC) answer the same question, *which
# weights are plausible given the data*, and fail in different ways. VI searches a family of
# distributions for the member nearest to the posterior: it is fast, but no amount of training
# recovers what the family cannot represent. MCMC explores the posterior itself: it is slow, and
# exact in the limit. In this notebook
#
# 1. Hamiltonian Monte Carlo (HMC) provides a reference,
# 2. a factorised and a full-rank Gaussian are fitted to the same program,
# 3. stochastic gradient Langevin dynamics (SGLD) samples with minibatches, at the price of a bias,
# 4. one table and one figure compare them, and ArviZ checks them.
#
# It runs in about two minutes on a laptop, without a network connection.

# %%
import warnings

import matplotlib.pyplot as plt
import pyro
import torch
import xarray
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median

from pyro_bnn import Posterior, fit, mcmc, plotting
from pyro_bnn.diagnostics import compare, summary, to_arviz
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression

with warnings.catch_warnings():  # ArviZ 0.x announces its next version once a day
    warnings.simplefilter("ignore")
    import arviz as az

torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## One model
#
# The data are a sine with noise, observed at 40 inputs on both sides of a gap. The network is that
# of notebook 1 with 16 hidden units and known noise, 49 weights in all. These lines are the whole
# model, and every method below takes the same object:
#
# ```python
# w1 = pyro.sample("w1", dist.Normal(x.new_zeros(inputs, hidden), 1.0).to_event(2))
# b1 = pyro.sample("b1", dist.Normal(x.new_zeros(hidden), 1.0).to_event(1))
# w2 = pyro.sample("w2", dist.Normal(x.new_zeros(hidden), 2 * hidden**-0.5).to_event(1))
# b2 = pyro.sample("b2", dist.Normal(x.new_zeros(()), 1.0))
# with pyro.plate("data", num_data, subsample=range(len(x))):
#     pyro.sample("y", dist.Normal(torch.relu(x @ w1 + b1) @ w2 + b2, noise), obs=y)
# ```

# %%
noise = 0.2
x = torch.cat([torch.empty(20, 1).uniform_(-2.0, -0.7), torch.empty(20, 1).uniform_(0.7, 2.0)])
y = torch.sin(2 * x.squeeze(1)) + noise * torch.randn(40)
grid = torch.linspace(-2.2, 2.2, 101)[:, None]
y_grid = torch.sin(2 * grid.squeeze(1)) + noise * torch.randn(101)  # test data, also inside the gap

model = hidden_layer_regression(num_data=40, hidden=16, noise=noise)

# %% [markdown]
# ## The reference: Hamiltonian Monte Carlo
#
# HMC gives the weights a random momentum and follows the motion of a particle on the surface
# $-\log p(w, y)$ for many small steps, each of which takes one gradient over all the data. The end
# point is accepted or rejected, which makes the method exact: the only error left is that of
# finitely many draws. Eight chains start at eight draws from the prior and move together in one
# process, by calls of one compiled function.
#
# The progress bar shows the phase (`warm-up`, in which step size, scales and trajectory length are
# adapted, then `draws`), and for the latest step the log density `lp` in nats, the
# `acceptance_rate`, the `step_size`, the number of `diverging` draws so far, and the speed. Three
# of them deserve attention. `lp` should have stopped rising before the draws begin. The acceptance
# rate should be near 0.8, the target of the warm-up. A divergence means that the integrator failed
# at a place of high curvature, which the draws then miss.

# %%
hmc = mcmc.hmc(model, (x, y), chains=8, warmup=500, draws=500, seed=0)
statistics = hmc.statistics
rate, diverging = statistics["acceptance_rate"].mean(), int(statistics["diverging"].sum())
print(f"acceptance rate {rate:.2f}, {diverging} divergent draws")
print(f"{statistics['n_steps'].mean():.0f} steps per draw, {hmc.facts['gradients']:,} gradients")

# %% [markdown]
# ### Did it converge?
#
# R-hat compares the spread between chains with the spread within them, and is 1 if they agree.
# Above 1.01 it calls for a closer look; above 1.05 the draws should not be used. But R-hat of
# *what*? `to_arviz` converts the draws for ArviZ. To the weights we add the values of the function
# at -1.5, at 0 (in the gap) and at 1.5.

# %%
places = torch.tensor([-1.5, 0.0, 1.5])[:, None]


def with_functions(posterior, draws=None):
    data = to_arviz(posterior, (x, y), draws=draws)
    sites = {
        name: torch.from_numpy(data["posterior"][name].values) for name in ("w1", "b1", "w2", "b2")
    }
    values = Posterior.from_draws(model, sites).functions(places)["mean"]  # (chain, draw, place)
    data["posterior"]["f"] = xarray.DataArray(
        values.numpy(), dims=("chain", "draw", "at"), coords={"at": places.squeeze(1).numpy()}
    )
    return data


hmc_arviz = with_functions(hmc)
weights = summary(hmc_arviz, var_names=["w1", "b1", "w2"])
functions = summary(hmc_arviz, var_names=["f"])
for label, table in [("48 weights of hidden units", weights), ("3 values of f", functions)]:
    rhat, ess = table["r_hat"].astype(float), table["ess_bulk"].astype(float)
    print(f"{label:28s}R-hat up to {rhat.max():.2f}, effective sample size from {ess.min():.0f}")
assert weights["r_hat"].astype(float).max() > 1.03 > functions["r_hat"].astype(float).max()

# %% [markdown]
# Judged by the weights, these chains are far from convergence; judged by the function, they have
# converged. The function is what matters. The weights are not identifiable: permuting the hidden
# units changes every weight and leaves f unchanged, so the posterior consists of $16!$ copies of
# itself. Two chains in different copies disagree on "the first weight" although they describe the
# same functions.

# %%
order = torch.randperm(16)
permuted = {name: value if name == "b2" else value[..., order] for name, value in hmc.draws.items()}
same = Posterior.from_draws(model, permuted).functions(grid)["mean"]
difference = (permuted["w2"] - hmc.draws["w2"]).abs().mean()
print(f"after a permutation the weights w2 differ by {difference:.2f} on average,")
print(f"the functions by {(same - hmc.functions(grid)['mean']).abs().max():.0e} at most: rounding")

# %%
unit = int(summary(hmc_arviz, var_names=["w1"])["r_hat"].astype(float).argmax())
plot_trace = getattr(az, "plot_trace_dist", az.plot_trace)  # its name in ArviZ 1.x
plot_trace(
    hmc_arviz, var_names=["w1", "f"], coords={"w1_dim_1": [unit], "at": [0.0]}, compact=False
)
plt.gcf().tight_layout()

# %% [markdown]
# One colour per chain: densities on the left, traces on the right. Above, the weight with the
# largest R-hat: every chain has its own density, and a trace stays on one side for dozens of
# draws. Below, the function in the middle of the gap: every chain passes through its whole range
# many times, and the eight densities agree.
#
# ## Two variational families
#
# `MeanField` is the factorised Gaussian. `AutoMultivariateNormal` is Pyro's Gaussian with a full
# covariance matrix over all 49 weights. Both are trained for long with a decaying learning rate,
# so that the remaining error is mostly that of the family and not of the optimisation.


# %%
def variational(guide, num_particles, epochs=10_000):
    result = fit(
        model,
        guide,
        (x, y),
        epochs=epochs,
        learning_rate=lambda epoch: 0.02 * 0.01 ** (epoch / epochs),
        num_particles=num_particles,
        compile=True,
    )
    loss = torch.tensor(result.history["loss"][-500:]).mean()
    print(f"ELBO {-loss:.1f} nats")
    return result.posterior


pyro.set_rng_seed(0)
mean_field = variational(MeanField(model, x, y), num_particles=4)
guide = AutoMultivariateNormal(model, init_loc_fn=init_to_median, init_scale=0.05)
guide(x, y)  # a stock guide of Pyro's makes its parameters when it is first called
full_rank = variational(guide, num_particles=1)

# %% [markdown]
# The ELBO is a lower bound of $\log p(y \mid x)$; the difference is $\mathrm{KL}(q \,\|\, p(w \mid
# x, y))$. The difference between the two numbers is therefore how many nats nearer to the
# posterior the correlations bring us. The ELBO does not tell how far the better one still is from
# the posterior; the reference does.
#
# ## SGLD: minibatches, and a bias
#
# SGLD is stochastic gradient ascent on the log density, with noise added,
#
# $$w \leftarrow w + \tfrac{\varepsilon}{2}\, \widehat{\nabla \log p}(w, y)
# + \sqrt{\varepsilon}\, \xi, \qquad \xi \sim \mathcal N(0, I),$$
#
# where the gradient is that of a minibatch. No step is ever rejected, so a step is cheap, but the
# stationary distribution is biased. For a Gaussian with variance $s^2$ and exact gradients, one
# step is $w \leftarrow (1 - \varepsilon / 2 s^2)\, w + \sqrt\varepsilon\, \xi$. Its stationary
# variance solves $v = (1 - \varepsilon / 2 s^2)^2 v + \varepsilon$:
#
# $$v = \frac{s^2}{1 - \varepsilon / 4 s^2}.$$
#
# The variance is always too large: slightly at first, twice the right one at $\varepsilon = 2
# s^2$, and beyond $4 s^2$ the chain diverges. What counts is the *narrowest* direction of the
# posterior. Linear regression has a Gaussian posterior, on which the formula can be tested:

# %%
linear = linear_regression(num_data=40, noise=0.5)
design = torch.cat([x, torch.ones(40, 1)], 1)
values, directions = torch.linalg.eigh(design.T @ design / 0.5**2 + torch.eye(2))
narrowest, direction = float(1 / values[-1]), directions[:, -1]
print("step / s^2    variance / s^2: sampled   formula")
for multiple in [0.4, 2.0, 3.2]:
    sampled = mcmc.sgld(
        linear,
        (x, y),
        step_size=multiple * narrowest,
        chains=100,
        warmup=300,
        draws=100,
        thin=5,
        compile=False,
        progress=False,
    )
    weights = torch.cat([sampled.draws["weight"], sampled.draws["bias"][..., None]], -1)
    ratio = float((weights @ direction).var() / narrowest)
    print(f"{multiple:10.1f}{ratio:26.2f}{1 / (1 - multiple / 4):11.2f}")
    assert abs(ratio * (1 - multiple / 4) - 1) < 0.1

# %% [markdown]
# The noise of minibatches is a second source of excess variance, of the same order. Now the
# network, with batches of 20 and two step sizes. The run with the smaller one takes four times as
# many steps, so that both travel equally far. Chains that disagree at the end are reported in a
# `ConvergenceWarning`, which `compare` repeats below its table.

# %%
sgld = {}
for step_size, steps in [(5e-5, 160_000), (2e-4, 40_000)]:
    sgld[step_size] = mcmc.sgld(
        model,
        (x, y),
        step_size=step_size,
        batch_size=20,
        chains=8,
        warmup=steps // 4,
        draws=300,
        thin=steps // 300,
        seed=0,
    )

# %% [markdown]
# ## Comparison
#
# `compare` evaluates the functions of every method at the same inputs and measures their distance
# to the reference. For the reference itself it reports the distance between two halves of its
# chains: smaller distances are noise.

# %%
posteriors = {"HMC": hmc, "mean field": mean_field, "full rank": full_rank}
posteriors |= {f"SGLD, {step_size:.0e}": posterior for step_size, posterior in sgld.items()}
comparison = compare(posteriors, grid, y_grid, reference="HMC", data=(x, y))
print(comparison)

# %%
plotting.plot_comparison(comparison)

# %% [markdown]
# Above, f and the 90 % interval of y for each method; below, the standard deviation of f(x)
# divided by that of the reference. The lower panel in numbers, at the data and between them:

# %%
at = grid.squeeze(1).abs()
gap, near = at < 0.4, (at > 1.2) & (at < 2)
ratios = {
    name: curve.stddev / comparison.curves["HMC"].stddev
    for name, curve in comparison.curves.items()
}
print(f"{'sd of f(x) over that of HMC':30s}at the data    in the gap")
for name, ratio in ratios.items():
    print(f"{name:30s}{ratio[near].mean():11.2f}{ratio[gap].mean():14.2f}")
small, large = list(sgld)
assert ratios["mean field"][gap].mean() < 0.5
assert ratios["full rank"][gap].mean() < 0.5
assert 1 < ratios["full rank"][near].mean() < ratios["mean field"][near].mean()
assert (
    1 < ratios[f"SGLD, {small:.0e}"][near].mean() < 1.4 < ratios[f"SGLD, {large:.0e}"][near].mean()
)

# %% [markdown]
# * **Mean field** is wrong in both directions. In the gap it is far too certain. At the data,
#   where the answer is well determined, it is far too *uncertain*: the posterior is narrow there
#   because errors of one weight are compensated by another; with independent weights the errors
#   add up.
# * **Full rank** represents the correlations, which repairs part of the error at the data. In the
#   gap it is far too certain as well: many arrangements of the hidden units are plausible there,
#   and a Gaussian commits to one.
# * **SGLD** covers most of the gap. With the large step it is too wide at the data, where the
#   posterior is narrow; with the small step it is nearly right. But a small step explores slowly:
#   the notes below the table report the chains that have not mixed, and their numbers are rough.
# * **HMC** takes at least ten times the gradients of a fit, and its chains agree. SGLD is no
#   cheaper here because a minibatch of 40 observations saves nothing. With a million observations
#   it would.
#
# Test log-likelihood and coverage say less than the picture: each is one number for all inputs, in
# which errors of both signs are mixed, and the noise of y hides much of both. A method can predict
# well on average and still misjudge its own uncertainty.
#
# ## ArviZ
#
# `to_arviz` takes any posterior. For HMC, `summary` reports effective sample sizes and R-hat:

# %%
functions

# %% [markdown]
# For the full-rank Gaussian it does not:

# %%
full_rank_arviz = with_functions(full_rank, draws=1000)
summary(full_rank_arviz, var_names=["f"])

# %% [markdown]
# R-hat and effective sample sizes ask whether a *chain* has explored its distribution. Draws from
# a guide are independent: R-hat would be 1 and every draw effective, and both would look like a
# certificate for a distribution that is wrong. Compare the two rows of f at 0 instead.
#
# Both can be asked how well they predict an observation that they have not seen. `loo` estimates
# this without fitting 40 times: it weights every draw by $1 / p(y_n \mid x_n, w)$, as if
# observation n had been left out, and smooths the largest weights with a Pareto distribution. Its
# shape k tells whether this worked: below 0.7 it did; above, a few draws carry all the weight, and
# the estimate is unreliable.

# %%
print(az.loo(hmc_arviz))

# %%
az.compare({"HMC": hmc_arviz, "full rank": full_rank_arviz})

# %% [markdown]
# ArviZ warns about the draws of the Gaussian, and rightly. The weights assume draws from the
# *posterior*. Where the Gaussian is too wide, some of its draws miss observations by many standard
# deviations of the noise and receive enormous weights. The order of the two is therefore
# plausible, but their distance means little. Where Pareto k is high, hold data out, as `compare`
# did for its row on the test log-likelihood.
#
# `k-hat of the guide` in the table is the same idea over the weights: the shape of the tail of
# $p(w, y) / q(w)$. It exceeds 0.7 for nearly every network, since no Gaussian covers $16!$ copies.
# It shows that q is not the posterior, not that its functions are bad.
#
# ## When to use which
#
# * **Mean field**: many weights, many data, predictions near the data, pruning and compression. Do
#   not rely on its uncertainty away from the data.
# * **Full rank, low rank**: hundreds or thousands of weights, when uncertainty at the data
#   matters.
# * **SGLD** and its relatives (`mcmc.psgld`, `mcmc.sghmc`, `mcmc.baoa`): too many data for full
#   gradients. Halve the step size until the answer no longer changes.
# * **HMC**: models that are small enough, and a smaller copy of every other problem, to learn what
#   a cheaper method misses. `mcmc.nuts(model, (x, y), backend="nutpie")` is the well-known
#   alternative, which chooses the length of its trajectories at every draw, one chain after the
#   other (`pip install "pyro-bnn[nuts]"`).
#
# ## Exercises
#
# 1. Run SGLD with a step of `1e-3`. What happens, and what does that tell about the variance in
#    the narrowest direction? Then leave `batch_size` out at `2e-4`: how much of the excess
#    variance was due to the minibatches?
# 2. Move ten of the 40 inputs into the gap. Which error of mean field disappears, and which
#    remains?
# 3. Start SGLD from the fit, `start=mean_field`, with a tenth of the warm-up. Does R-hat improve?
#    Do the functions in the gap, and what would you have concluded without the reference?
