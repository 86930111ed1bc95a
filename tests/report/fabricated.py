"""Fabricated rows of runs.csv, for pages and claims."""


def row(name, model, accuracy, seed=0, fraction=1.0, **changes):
    """A published run at mini scale in bf16; seed and fraction determine the subset."""
    equal, epochs = ("steps", 5) if "steps" in name else ("epochs", 20)
    found = {
        "run": f"{name}/{model}/mini-modern/frac{fraction:g}/seed{seed}", "source": None, "kept_out": None,
        "name": name, "model": model, "recipe": "modern", "scale": "mini", "data": "cifar10", "fraction": fraction,
        "equal": equal, "train_images": int(50_000 * fraction), "subset_seed": seed, "holdout": 0, "seed": seed,
        "epochs": epochs, "steps": 1_955, "train_acc": 0.9, "test_acc": accuracy, "val_acc": None,
        "parameters": 450_000, "precision": "bf16",
        "device": "a CPU, 1 thread", "cpu_family": None, "commit": "0" * 40, "subset_hash": f"{fraction}-{seed}",
        "format": 3,
    }  # fmt: skip
    return found | changes


def seeds(name, model, accuracies, **changes):
    """Return one such run for each accuracy, with seeds 0, 1, ..."""
    return [row(name, model, accuracy, seed, **changes) for seed, accuracy in enumerate(accuracies)]
