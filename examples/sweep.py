"""Try several strengths of ridge regression, each in a container that has scikit-learn.

    hostctl run examples/sweep.py
    hostctl run examples/sweep.py --folds 10
"""

import hostd

app = hostd.App("sweep")
image = hostd.Image.debian_slim().pip_install("scikit-learn")

ALPHAS = [0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]


@app.function(image=image, cpu=1, memory=512)
def score(alpha: float, folds: int) -> float:
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score

    features, target = load_diabetes(return_X_y=True)
    value = cross_val_score(Ridge(alpha=alpha), features, target, cv=folds).mean()
    print(f"alpha {alpha} done")
    return float(value)


@app.local_entrypoint()
def main(folds: int = 5):
    scores = list(score.starmap((alpha, folds) for alpha in ALPHAS))
    for alpha, value in zip(ALPHAS, scores):
        print(f"alpha={alpha:<6} r2={value:.4f}")
    best = max(range(len(scores)), key=scores.__getitem__)
    print(f"best: alpha={ALPHAS[best]}")
