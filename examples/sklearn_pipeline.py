"""Binary codes in a scikit-learn pipeline: which code length keeps the neighbours, and what a classifier loses on codes.

python examples/sklearn_pipeline.py     (pip install 'distillhash[sklearn]')
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distillhash import BinaryHasher


def main() -> dict[str, float]:
    """Print and return the share of neighbours kept by each length, and the accuracy on floats and on codes."""
    x, y = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(x, y, random_state=0)

    # No labels: BinaryHasher.score is the share of the 10 nearest rows that codes find among their 10 nearest.
    search = GridSearchCV(BinaryHasher(), {"method": ["lsh", "itq"], "n_bits": [16, 32, 64]}, cv=3).fit(train)
    results = {}
    for parameters, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        results[f"{parameters['method']}, {parameters['n_bits']} bits: neighbour recall@10"] = float(score)

    floats = make_pipeline(StandardScaler(), KNeighborsClassifier(5)).fit(train, train_labels)
    neighbours = KNeighborsClassifier(5, metric="hamming", algorithm="brute")
    codes = make_pipeline(BinaryHasher("itq", n_bits=64), neighbours).fit(train, train_labels)
    results["5 nearest neighbours on 64 floats: accuracy"] = floats.score(test, test_labels)
    results["5 nearest neighbours on 64 bits: accuracy"] = codes.score(test, test_labels)
    for name, value in results.items():
        print(f"{value:.3f}  {name}")
    return results


if __name__ == "__main__":
    main()
