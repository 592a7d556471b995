#!/usr/bin/env python3
"""Writes testdata/statistics.json: what scipy says of a few samples.

    pip install scipy==1.17.1
    scripts/make_statistics_goldens.py > testdata/statistics.json
"""

import itertools
import json

import numpy as np
from scipy import stats


def wilson():
    for hits, n in [(0, 5), (5, 5), (3, 5), (15, 15), (137, 150), (1, 1000)]:
        interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
        yield [hits, n, float(interval.low), float(interval.high)]


def quantiles(random):
    for n in [1, 2, 5, 20, 99, 100]:
        values = [round(float(x), 3) for x in random.lognormal(6, 1, n)]
        for share in [0.05, 0.25, 0.5, 0.75, 0.95]:
            yield [values, share, float(np.quantile(values, share, method="inverted_cdf"))]


def enumerated(differences):
    """The test over all signs, by definition; scipy enumerates samples without ties."""
    ranks = stats.rankdata(np.abs(differences))
    statistic = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    signs = itertools.product([0, 1], repeat=len(ranks))
    sums = [float(np.dot(sign, ranks)) for sign in signs]
    return float(statistic), min(1.0, 2 * sum(s <= statistic for s in sums) / len(sums))


def signed_rank(random):
    for n in [1, 6, 15, 50]:
        differences = random.normal(0.3, 1, n)
        found = stats.wilcoxon(differences, method="exact")
        yield [differences.tolist(), float(found.statistic), float(found.pvalue)]
    for n in [5, 12]:
        differences = random.integers(1, 4, n) * random.choice([-1, 1, 1], n)
        yield [differences.tolist(), *enumerated(differences)]
    for n in [51, 200]:
        differences = random.integers(-9, 12, n)
        differences = np.where(differences == 0, 5, differences)
        found = stats.wilcoxon(differences, method="asymptotic", correction=False)
        yield [differences.tolist(), float(found.statistic), float(found.pvalue)]


def holm():
    for p in [[0.01, 0.04, 0.03, 0.005], [0.5], [0.9, 0.8, 0.02]]:
        order = np.argsort(p)
        steps = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1))
        corrected = np.empty(len(p))
        corrected[order] = np.minimum(steps, 1)
        yield [p, corrected.tolist()]


def mean(random):
    values = random.gamma(2, 3, 40)
    found = stats.bootstrap((values,), np.mean, n_resamples=200_000, method="percentile", rng=1)
    interval = found.confidence_interval
    return [values.tolist(), float(interval.low), float(interval.high)]


def main():
    random = np.random.default_rng(42)
    goldens = {
        "wilson": list(wilson()),
        "quantiles": list(quantiles(random)),
        "signed_rank": list(signed_rank(random)),
        "holm": list(holm()),
        "mean": mean(random),
    }
    print(json.dumps(goldens))


if __name__ == "__main__":
    main()
