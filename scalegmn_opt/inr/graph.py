"""The weight graph of a SIREN."""

from functools import lru_cache

import torch

from scalegmn_opt.graph import WeightGraph, trace

from .siren import Siren, SirenSpec


@lru_cache(maxsize=64)
def siren_graph(spec: SirenSpec) -> WeightGraph:
    """The weight graph of SIRENs of ``spec``; hidden neurons permute and flip their sign."""
    module = Siren(spec, generator=torch.Generator().manual_seed(0))
    return trace(module, (torch.zeros(1, spec.in_features),))
