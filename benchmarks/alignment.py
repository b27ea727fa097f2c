"""What a comparison of layers costs, beside the obvious scikit-learn code, in one run on the same numbers.

    python benchmarks/alignment.py                     1,000 pairs, 4,096 units a side, 12 x 12 layers
    python benchmarks/alignment.py --units 512 --layers 4 --whole

The obvious code: for each pair of layers and direction, nested cross-validation with scikit-learn's Ridge on
standardised features, five folds outside and the other four inside, the same folds and lambdas as ours; its value and
lambdas must be ours. Times are of the processor, over all threads, so that other work on the machine does not count. It takes hours for a whole map, so that unless --whole is given its first fold of one layer
pair is timed, and what a map would take is extrapolated from that: folds x pairs x directions.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nnsight_dream.stats.folds import make_folds
from nnsight_dream.stats.layer_map import MEASURES, layer_map
from nnsight_dream.stats.ridge import LAMBDAS, linear_predictivity
from nnsight_dream.stats.similarity import cka, mutual_knn, rsa


def obvious(x: np.ndarray, y: np.ndarray, folds: np.ndarray, some: int) -> tuple[list[float], list[float]]:
    """(mean r, lambda) of the first `some` folds, as one would write it with scikit-learn."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    values, chosen = [], []
    for test in range(some):
        errors = np.zeros(len(LAMBDAS))
        for inner in set(folds.tolist()) - {test}:
            fit, held = (folds != test) & (folds != inner), folds == inner
            a, b = StandardScaler().fit(x[fit]), StandardScaler().fit(y[fit])
            for i, penalty in enumerate(LAMBDAS):
                ridge = Ridge(alpha=penalty).fit(a.transform(x[fit]), b.transform(y[fit]))
                errors[i] += ((ridge.predict(a.transform(x[held])) - b.transform(y[held])) ** 2).sum()
        chosen.append(LAMBDAS[int(errors.argmin())])
        fit, held = folds != test, folds == test
        a, b = StandardScaler().fit(x[fit]), StandardScaler().fit(y[fit])
        p = Ridge(alpha=chosen[-1]).fit(a.transform(x[fit]), b.transform(y[fit])).predict(a.transform(x[held]))
        p, t = p - p.mean(0), y[held] - y[held].mean(0)
        values.append(float(((p * t).sum(0) / np.linalg.norm(p, axis=0) / np.linalg.norm(t, axis=0)).mean()))
    return values, chosen


def layers(count: int, n: int, units: int, seed: int) -> dict[int, np.ndarray]:
    """Features that share 50 latents with the other side's, the more the deeper."""
    latent = np.random.default_rng(0).normal(size=(n, 50))
    random = np.random.default_rng(seed)
    features = {}
    for layer in range(1, count + 1):
        signal = latent @ random.normal(size=(50, units)) / 7
        features[layer] = layer / count * signal + random.normal(size=(n, units))
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--whole", action="store_true", help="run the obvious code for the whole map as well")
    args = parser.parse_args()
    folds = make_folds(args.pairs, 5)
    xs, ys = (layers(args.layers, args.pairs, args.units, seed) for seed in (1, 2))
    x, y = xs[args.layers], ys[args.layers]
    print(f"{args.pairs} pairs, {args.units} x {args.units} units, {args.layers} x {args.layers} layers\n")

    began = time.process_time()
    score = linear_predictivity(x, y, folds=folds)
    ours = time.process_time() - began
    print(f"linear predictivity, one layer pair, one direction   {ours:9.2f} s   r = {score.value:.4f}", flush=True)
    for name, measure in (("CKA, debiased", cka), ("mutual 10-NN", mutual_knn), ("RSA", rsa)):
        began = time.process_time()
        value = float(measure(x, y))
        print(f"{name:<52} {time.process_time() - began:9.2f} s   {value:.4f}", flush=True)
    began = time.process_time()
    score.null(10)
    print(f"{'null of predictivity, 10 draws, all fitted anew':<52} {time.process_time() - began:9.2f} s", flush=True)

    began = time.process_time()
    values, chosen = obvious(x, y, folds, 1)
    theirs = 5 * (time.process_time() - began)
    assert chosen[0] == score.lambdas[0], (chosen, score.lambdas)
    held = folds == 0
    p, t = (v[held] - v[held].mean(0) for v in (score.predicted, score.target))
    mine = ((p * t).sum(0) / np.linalg.norm(p, axis=0) / np.linalg.norm(t, axis=0)).mean()
    assert abs(mine - values[0]) < 1e-6, (mine, values[0])
    print(f"scikit-learn, one layer pair, 5 x one fold           {theirs:9.2f} s   same lambda and r", flush=True)
    print(f"  {theirs / ours:.0f} times ours\n", flush=True)

    for measure in MEASURES:
        began = time.process_time()
        rows = layer_map(xs, ys, measure)
        took = time.process_time() - began
        print(f"map, {measure:<14} {len(rows):4} cells                      {took:9.2f} s", flush=True)
        if measure == "predictivity":
            whole, source = theirs * len(rows), "extrapolated"
            if args.whole:
                began, source = time.process_time(), "measured"
                for a in xs.values():
                    for b in ys.values():
                        obvious(a, b, folds, 5), obvious(b, a, folds, 5)
                whole = time.process_time() - began
            print(f"map, scikit-learn, {source:<14}                   {whole:9.0f} s   {whole / took:.0f} times ours")


if __name__ == "__main__":
    main()
