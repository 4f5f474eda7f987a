"""Non-contrastive self-supervised learning: losses, views, a training loop, probes and records.

Public names are imported on first use, so that `import ncssl_core` alone does not load torch.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "augment": ["RECIPES", "MultiView", "Recipe", "ViewParameters", "clean_view"],
    "base": ["InputError", "RunStopped"],
    "claims": ["Verdict", "ledger"],
    "config": ["PretrainConfig"],
    "datasets": ["DataSet", "Images", "load", "synthetic"],
    "losses": ["BarlowTwinsLoss", "VICRegLoss"],
    "models": ["Projector", "build_backbone"],
    "pretrain": ["Run", "load_run"],
    "sweep": ["Suite", "Sweep", "read_suite"],
    "probe": ["extract_features", "knn_probe", "linear_probe", "paper_probe"],
}
_HOME = {name: room for room, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ncssl_core' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"ncssl_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
